"""From the metrics of an evaluation to the numbers that a search optimizes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from trainer_core import DataError, greater_is_better

logger = logging.getLogger("trainer_core.tuning")

Metrics = Mapping[str, Any]

NO_OBJECTIVE: Final = re.compile(
    r"^epoch$|_(runtime|samples_per_second|steps_per_second|tokens_per_second)$|_mem_(cpu|gpu)_|_time$|num_input_tokens"
)
"""Metrics that say how an evaluation went, not how good the model is."""


def default_objective(metrics: Metrics) -> float:
    """Gives the sum of all metrics but the losses; the loss where there is nothing else."""
    return float(sum(metrics[name] for name in default_names(metrics)))


def default_names(metrics: Metrics) -> list[str]:
    """Gives the metrics that `default_objective` adds up.

    Raises:
        DataError: there is none.
    """
    numbers = [name for name, value in metrics.items() if _is_number(value) and not NO_OBJECTIVE.search(name)]
    names = [name for name in numbers if not name.endswith("_loss")] or numbers
    if not names:
        raise DataError(
            f"compute_objective: evaluations give no number to optimize, got {', '.join(metrics) or 'no metric'}. "
            f"Let the model give its loss, or pass compute_metrics or compute_objective."
        )
    return names


class Objective:
    """What is optimized, from the metrics of an evaluation.

    Args:
        function: the user's; None for `default_objective`.
        directions: "minimize" or "maximize", for each number.
    """

    def __init__(self, function: Callable[[Metrics], Any] | None, directions: Sequence[str]) -> None:
        self.function = function if function is not None else default_objective
        self.directions = directions
        self._is_told = function is not None

    def __call__(self, metrics: Metrics) -> list[float]:
        """Gives the numbers.

        Raises:
            DataError: the function gives no numbers, or not as many as there are directions.
        """
        if not self._is_told:
            self._is_told = True
            self._tell_default(default_names(metrics))
        try:
            given = self.function(dict(metrics))
        except Exception as error:
            error.add_note(f"raised in compute_objective, which got the metrics {', '.join(metrics)}")
            raise
        return self._numbers(given)

    def _numbers(self, given: Any) -> list[float]:
        wanted = len(self.directions)
        values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if len(values) != wanted:
            raise DataError(
                f"compute_objective: must return {_count(wanted)}, as direction says, got {given!r}. "
                f"Return as many, or pass direction=[...] with one for each."
            )
        try:
            return [float(value) for value in values]
        except (TypeError, ValueError):
            raise DataError(f"compute_objective: must return {_count(wanted)}, got {given!r}. Return floats.") from None

    def _tell_default(self, names: Sequence[str]) -> None:
        """Says what is optimized when the user did not, and where that is likely the wrong way round."""
        direction = self.directions[0]
        logger.info("objective: %s, to %s.", " + ".join(names), direction)
        wrong = [name for name in names if greater_is_better(name) is (direction == "minimize")]
        if wrong:
            other = "maximize" if direction == "minimize" else "minimize"
            told = "direction: is %r, and the default objective is the sum of %s. Did you mean %r?"
            logger.warning(told, direction, ", ".join(wrong), other)


def _count(num_objectives: int) -> str:
    return "one number" if num_objectives == 1 else f"a list of {num_objectives} numbers"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
