"""Early stopping as an object for `callbacks=[...]`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from trainer_core import SettingsError
from trainer_core_early_stopping.plugin import EarlyStopping
from trainer_core_early_stopping.settings import EarlyStoppingSettings

if TYPE_CHECKING:
    from trainer_core import Plan, Trainer


class EarlyStoppingCallback(EarlyStopping):
    """Ends a run whose `metric_for_best_model` (the loss where that is not set) no longer improves.

    Args:
        early_stopping_patience: evaluations in a row without an improvement after which the run ends.
        early_stopping_threshold: an improvement is a value better by at least this than the last that was one.

    Raises:
        SettingsError: a value is wrong.
    """

    author: ClassVar[str] = "EarlyStoppingCallback"

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float = 0.0) -> None:
        if problems := list(_problems(early_stopping_patience, early_stopping_threshold)):
            raise SettingsError(problems)
        super().__init__(EarlyStoppingSettings(patience=early_stopping_patience, threshold=early_stopping_threshold))

    @property
    def early_stopping_patience(self) -> int:
        """Evaluations in a row without an improvement after which the run ends."""
        return self.settings.patience

    @property
    def early_stopping_threshold(self) -> float:
        """What a value must be better by than the last one that was an improvement."""
        return self.settings.threshold

    def on_plan(self, trainer: Trainer, plan: Plan) -> None:
        """Refuses what the settings of the plugin would refuse, and the two at once."""
        for problem in self.settings.contradictions(trainer.args):
            plan.contradict(problem.replace("early_stopping", self.author, 1))
        if trainer.args.section("early_stopping") is not None:
            plan.contradict(
                f"{self.author}: early_stopping is on as well, by the settings. "
                f"Keep one of the two: take the callback out, or set early_stopping=None."
            )
        super().on_plan(trainer, plan)


def _problems(patience: object, threshold: object) -> Iterator[str]:
    name = EarlyStoppingCallback.author
    if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
        yield (
            f"{name}: early_stopping_patience must be a whole number of at least 1, got {patience!r}. "
            f"Use 1 to end the run at the first evaluation without an improvement."
        )
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not is_number or not 0 <= threshold < math.inf:  # type: ignore[operator] # it is a number here
        yield (
            f"{name}: early_stopping_threshold must be a number of at least 0, got {threshold!r}. "
            f"Use 0.0 to take any better value for an improvement."
        )
