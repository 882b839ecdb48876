"""Rules that end a run: a goal for a metric, or a budget of time, tokens or samples; the first one met decides.

Budgets are looked at after every update, the clock after evaluations and saves as well: what has begun is finished.
Tokens, samples and metrics are the same on all ranks. Each rank has a clock of its own, and any of them ends the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from trainer_core import Phase, Signal
from trainer_core_early_stopping.duration import in_words
from trainer_core_early_stopping.settings import StopAtSettings
from trainer_core_early_stopping.watching import Watched, refuse_unknown, watched

if TYPE_CHECKING:
    from trainer_core import Plan, Section, Trainer

logger = logging.getLogger("trainer_core.stop_at")


@dataclass(slots=True)
class Account:
    """What a run has spent and reached.

    Attributes:
        seconds_before: that earlier parts of the run took.
        started: when this part began, by this rank's clock; None while nothing trains.
        is_late: the time is spent, and that was said.
        metric: the full name of the metric that was looked at last.
        value: its last value; None when there is none, or it was not finite.
    """

    seconds_before: float = 0.0
    started: float | None = None
    is_late: bool = False
    metric: str | None = None
    value: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds that all parts of the run took so far."""
        return self.seconds_before + (0.0 if self.started is None else monotonic() - self.started)


class StopAt:
    """Ends a run when the first of its rules is met."""

    settings_type: ClassVar[type[Section]] = StopAtSettings
    fires_in_replay: ClassVar[bool] = False

    def __init__(self, settings: StopAtSettings) -> None:
        self.settings = settings
        if settings.max_time is not None:
            self.decides_alone = True  # the clock is this rank's: ranks agree after every update
        self._account = Account()

    def on_plan(self, trainer: Trainer, plan: Plan) -> None:
        """Refuses a metric that no evaluation gives, and adds when the run ends, as far as that is known."""
        settings = self.settings
        if settings.has_goal:
            metric = self._watched(trainer)
            refuse_unknown(trainer, plan, metric)
            plan.schedule("stop", "stop_at.metric", None, f"when {metric.name} is {self._bound}")
        if settings.max_time is not None:
            plan.schedule("stop", "stop_at.max_time", None, f"after {in_words(settings.max_time)}")
        if settings.max_tokens is not None:
            plan.schedule("stop", "stop_at.max_tokens", None, f"with {settings.max_tokens:,} tokens")
        if settings.max_samples is not None:
            step = step_of_sample(plan, settings.max_samples)
            steps = None if step is None else [step] if step <= plan.max_steps else []
            plan.schedule("stop", "stop_at.max_samples", steps, f"with {settings.max_samples:,} samples")

    def on_phase(self, phase: Phase) -> None:
        """Begins anew with each run, and starts the clock; a checkpoint that it resumes from is loaded after this."""
        if phase is Phase.INIT:
            self._account = Account()
        if self._account.started is None:
            self._account.started = monotonic()

    def on_train_begin(self, trainer: Trainer) -> None:
        """Ends a resumed run that was interrupted where it was about to end."""
        if trainer.state.stopped_by is not None:
            return
        if self.settings.has_goal and self._watched(trainer).name == self._account.metric:
            self._judge_goal(trainer)
        self._judge_counts(trainer)
        self._judge_time(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        """Looks at the budgets after an update."""
        self._judge_counts(trainer)
        self._judge_time(trainer)

    def on_eval_end(self, trainer: Trainer, metrics: Mapping[str, Any]) -> None:
        """Looks at the goal, and at the clock: an evaluation takes time."""
        if self.settings.has_goal:
            metric = self._watched(trainer)
            value = metric.value_in(metrics)
            if not math.isfinite(value) and trainer.is_main_rank:
                logger.warning("step %d: %s is %s and meets no rule.", trainer.state.global_step, metric.name, value)
            self._account.metric, self._account.value = metric.name, value if math.isfinite(value) else None
            self._judge_goal(trainer)
        self._judge_time(trainer)

    def on_save(self, trainer: Trainer) -> None:
        """Looks at the clock: a save takes time."""
        self._judge_time(trainer)

    def on_teardown(self) -> None:
        """Stops the clock."""
        account = self._account
        account.seconds_before, account.started = account.seconds, None

    def state_dict(self) -> dict[str, Any]:
        """Gives the seconds that are spent, and the metric's last value."""
        account = self._account
        return {"seconds": account.seconds, "metric": account.metric, "value": account.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what earlier parts of the run spent, and the metric's last value."""
        account = self._account
        account.seconds_before, account.metric, account.value = state["seconds"], state["metric"], state["value"]

    @property
    def _bound(self) -> str:
        settings = self.settings
        return f"at least {settings.at_least:g}" if settings.at_least is not None else f"at most {settings.at_most:g}"

    def _watched(self, trainer: Trainer) -> Watched:
        return watched(trainer.args, "stop_at", self.settings.metric)

    def _judge_goal(self, trainer: Trainer) -> None:
        settings, value = self.settings, self._account.value
        if value is None:
            return
        if settings.at_least is not None:
            is_met = value >= settings.at_least
        else:
            is_met = settings.at_most is not None and value <= settings.at_most
        if is_met:
            self._stop(trainer, f"{self._account.metric} is {value:.6g}, {self._bound}")

    def _judge_counts(self, trainer: Trainer) -> None:
        settings, state = self.settings, trainer.state
        if settings.max_tokens is not None and state.num_input_tokens_seen >= settings.max_tokens:
            self._stop(trainer, f"{state.num_input_tokens_seen:,} tokens, max_tokens is {settings.max_tokens:,}")
        if settings.max_samples is not None and state.num_samples_seen >= settings.max_samples:
            self._stop(trainer, f"{state.num_samples_seen:,} samples, max_samples is {settings.max_samples:,}")

    def _judge_time(self, trainer: Trainer) -> None:
        limit, account = self.settings.max_time, self._account
        if limit is not None and not account.is_late and account.seconds >= limit:
            account.is_late = True
            self._stop(trainer, f"max_time, {in_words(limit)}, is spent", local=True)

    def _stop(self, trainer: Trainer, why: str, *, local: bool = False) -> None:
        trainer.request(Signal.STOP, by="stop_at", why=why, local=local)


def step_of_sample(plan: Plan, sample: int) -> int | None:
    """Gives the update that trains on the `sample`-th sample of a run, counted from 1; None when that is not known."""
    if not plan.num_samples or not plan.updates_per_epoch:
        return None
    epochs, rest = divmod(sample - 1, plan.num_samples)
    return epochs * plan.updates_per_epoch + rest // plan.global_batch_size + 1
