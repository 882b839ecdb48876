"""Early stopping: the run ends when its metric has not improved in so many evaluations.

An evaluation improves when its metric is better, by at least the threshold, than the *mark*: the value of the last
evaluation that improved. The mark does not move with smaller gains, so that slow and steady ones add up. The first
number is an improvement; a tie is none, and neither is NaN or an infinite value.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer_core import Phase, Signal
from trainer_core_early_stopping.settings import EarlyStoppingSettings
from trainer_core_early_stopping.watching import Watched, refuse_unknown, watched

if TYPE_CHECKING:
    from trainer_core import Plan, Section, Trainer

logger = logging.getLogger("trainer_core.early_stopping")


@dataclass(slots=True)
class Progress:
    """What the evaluations so far come to.

    Attributes:
        metric: the full name of the metric.
        greater_is_better: its direction.
        mark: its value at the last evaluation that improved; None before the first.
        mark_step: the update of that evaluation.
        failures: evaluations since then.
    """

    metric: str = ""
    greater_is_better: bool | None = None
    mark: float | None = None
    mark_step: int | None = None
    failures: int = 0

    def take(self, value: float, step: int, threshold: float) -> bool:
        """Takes an evaluation into account, and tells whether it improves."""
        improves = math.isfinite(value) and self._is_gain(value, threshold)
        if improves:
            self.mark, self.mark_step, self.failures = value, step, 0
        else:
            self.failures += 1
        return improves

    def _is_gain(self, value: float, threshold: float) -> bool:
        if self.mark is None:
            return True
        gain = value - self.mark if self.greater_is_better else self.mark - value
        # 0.6 - 0.5 is a hair below 0.1
        return gain > 0 and (gain >= threshold or math.isclose(gain, threshold, rel_tol=1e-6))

    def in_words(self, threshold: float) -> str:
        """Says why the run ends."""
        count = f"{self.failures} evaluation{'s' if self.failures > 1 else ''}"
        if self.mark is None:
            return f"{self.metric} was no finite number in {count}"
        moved, side = ("risen", "above") if self.greater_is_better else ("fallen", "below")
        by, its = (f"{threshold:g} ", "its mark,") if threshold else ("", "its best,")
        return f"{self.metric} has not {moved} {by}{side} {its} {self.mark:.6g} at step {self.mark_step}, in {count}"


class EarlyStopping:
    """Ends a run whose metric no longer improves."""

    settings_type: ClassVar[type[Section]] = EarlyStoppingSettings
    fires_in_replay: ClassVar[bool] = False
    author: ClassVar[str] = "early_stopping"
    """The author of its requests."""

    def __init__(self, settings: EarlyStoppingSettings) -> None:
        self.settings = settings
        self._progress = Progress()

    def on_plan(self, trainer: Trainer, plan: Plan) -> None:
        """Refuses a metric that no evaluation gives, and adds when the run may end."""
        settings = self.settings
        metric = self._watched(trainer)
        refuse_unknown(trainer, plan, metric)
        patience = f"{settings.patience} evaluation{'s' if settings.patience > 1 else ''}"
        note = f"when {metric.name} has not improved in {patience}"
        planned = [entry.steps for entry in plan.scheduled if entry.what == "evaluation"]
        steps = None if None in planned else plan.steps_of("evaluation")
        if steps is not None and len(steps) < settings.patience:
            plan.schedule("stop", self.author, [], f"{note}, and the run has {len(steps)}")
        else:
            since = "" if steps is None else f", not before step {steps[settings.patience - 1]}"
            plan.schedule("stop", self.author, None, note + since)

    def on_phase(self, phase: Phase) -> None:
        """Begins anew with each run; a checkpoint that it resumes from is loaded after this."""
        if phase is Phase.INIT:
            self._progress = Progress()

    def on_train_begin(self, trainer: Trainer) -> None:
        """Ends a resumed run that was interrupted where it was about to end; starts over with another metric."""
        metric, known = self._watched(trainer), self._progress
        if known.metric and (known.metric, known.greater_is_better) != (metric.name, metric.greater_is_better):
            told = "%s: the checkpoint knows the progress of %s, got %s. Patience is counted from here."
            logger.warning(told, self.author, _named(known.metric, known.greater_is_better), _named_of(metric))
            self._progress = Progress()
        elif known.failures >= self.settings.patience and trainer.state.stopped_by is None:
            self._stop(trainer)

    def on_eval_end(self, trainer: Trainer, metrics: Mapping[str, Any]) -> None:
        """Judges an evaluation of the run."""
        settings, progress, step = self.settings, self._progress, trainer.state.global_step
        metric = self._watched(trainer)
        progress.metric, progress.greater_is_better = metric.name, metric.greater_is_better
        value = metric.value_in(metrics)
        if progress.take(value, step, settings.threshold):
            return
        level = logging.INFO if math.isfinite(value) else logging.WARNING
        told = "step %d: %s is %.6g and counts as no improvement (%d of %d)."
        if trainer.is_main_rank:
            logger.log(level, told, step, metric.name, value, progress.failures, settings.patience)
        if progress.failures >= settings.patience:
            self._stop(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Gives the mark and the evaluations since then."""
        return asdict(self._progress)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the mark and the evaluations since then."""
        self._progress = Progress(**state)

    def _watched(self, trainer: Trainer) -> Watched:
        return watched(trainer.args, "early_stopping", self.settings.metric, self.settings.greater_is_better)

    def _stop(self, trainer: Trainer) -> None:
        trainer.request(Signal.STOP, by=self.author, why=self._progress.in_words(self.settings.threshold))


def _named(metric: str, greater_is_better: bool | None) -> str:
    return f"{metric} ({'more' if greater_is_better else 'less'} is better)"


def _named_of(metric: Watched) -> str:
    return _named(metric.name, metric.greater_is_better)
