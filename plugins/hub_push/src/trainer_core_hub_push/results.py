"""What a run measured: its evaluations one by one, and those of the model that it ends with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trainer_core import Trainer

_PREFIX: Final = "eval_"
_SPEEDS: Final = ("_runtime", "_per_second")
_LEAST_FIXED: Final = 0.001
"""From which value on four digits behind the point tell enough."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics without their prefix, after an update; with the training loss that was logged last before."""

    step: int
    epoch: float
    training_loss: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """All evaluations of the training, and what was measured of the model as it is now."""

    rows: Sequence[Evaluation]
    final: Mapping[str, float]
    where: str
    """When `final` was measured."""

    @property
    def scores(self) -> dict[str, float]:
        """The final metrics other than losses."""
        return {name: value for name, value in self.final.items() if not name.endswith("loss") and math.isfinite(value)}

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def columns(self) -> list[str]:
        """Titles of a table of the evaluations."""
        return ["training loss", "epoch", "step", *(_title(name) for name in self._names)]

    def cells(self, row: Evaluation) -> list[str]:
        """Gives one line of that table."""
        loss = "not logged" if row.training_loss is None else number(row.training_loss)
        values = [number(row.metrics[name]) if name in row.metrics else "" for name in self._names]
        return [loss, f"{row.epoch:g}", str(row.step), *values]


def _title(name: str) -> str:
    return "evaluation loss" if name == "loss" else name.replace("_", " ")


def number(value: float) -> str:
    """Gives a number as a reader wants it."""
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) >= _LEAST_FIXED or value == 0 else f"{value:.3g}"


def results_of(trainer: Trainer) -> Results:
    """Gives what the log of a run tells of its evaluations."""
    history = trainer.state.log_history
    closing = max((place for place, row in enumerate(history) if "train_loss" in row), default=len(history))
    rows, after = _evaluations(history[:closing]), _evaluations(history[closing + 1 :])
    if after:
        return Results(rows, after[-1].metrics, "after training")
    best = trainer.state.best_global_step if trainer.loaded_best_from is not None else None
    for row in reversed(rows):
        if row.step == best or best is None:
            what = f"at step {row.step}" + (", the best one, whose weights these are" if best is not None else "")
            return Results(rows, row.metrics, what)
    return Results(rows, {}, "")


def _evaluations(history: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
    """Gives the evaluations among rows; those of one step, of several datasets, together."""
    found: dict[int, Evaluation] = {}
    loss: float | None = None
    for row in history:
        loss = row.get("loss", loss)
        metrics = {name.removeprefix(_PREFIX): value for name, value in row.items() if _is_metric(name, value)}
        if metrics:
            before = found.get(row["step"])
            together = {**before.metrics, **metrics} if before is not None else metrics
            found[row["step"]] = Evaluation(row["step"], row["epoch"], loss, together)
    return [found[step] for step in sorted(found)]


def _is_metric(name: str, value: object) -> bool:
    return name.startswith(_PREFIX) and not name.endswith(_SPEEDS) and isinstance(value, (int, float))
