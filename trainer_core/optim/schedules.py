"""Learning rate schedules by name, and what a checkpoint keeps of any schedule.

A schedule of ours is a counter and a formula (`curves.py`): `step()` counts one update and writes the rate into the
optimizer's groups, as a python float, in under a microsecond. A schedule that follows a metric is torch's
`ReduceLROnPlateau` with the same face. A user's own schedule is kept as it is; see `schedule_state.py`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, SupportsFloat, TypeAlias, TypeGuard

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainer_core.errors import CheckpointError, SettingsError, did_you_mean
from trainer_core.optim import curves
from trainer_core.optim.curves import Factor, Span
from trainer_core.settings.names import greater_is_better

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments


@dataclass(frozen=True)
class ScheduleKind:
    """What a name in `lr_scheduler_type` stands for."""

    build: Callable[..., Factor] | None
    """A formula of `curves`; None for torch's `ReduceLROnPlateau`, which follows a metric."""
    warms_up: bool = True

    @property
    def options(self) -> list[str]:
        """The names that `lr_scheduler_kwargs` may have."""
        return list(inspect.signature(self.build or ReduceLROnPlateau).parameters)[1:]


SCHEDULES: Final[Mapping[str, ScheduleKind]] = {
    "linear": ScheduleKind(curves.linear),
    "cosine": ScheduleKind(curves.cosine),
    "cosine_with_restarts": ScheduleKind(curves.cosine_with_restarts),
    "polynomial": ScheduleKind(curves.polynomial),
    "constant": ScheduleKind(curves.constant, warms_up=False),
    "constant_with_warmup": ScheduleKind(curves.constant_with_warmup),
    "inverse_sqrt": ScheduleKind(curves.inverse_sqrt),
    "reduce_lr_on_plateau": ScheduleKind(None, warms_up=False),
    "cosine_with_min_lr": ScheduleKind(curves.cosine_with_min_lr),
    "cosine_warmup_with_min_lr": ScheduleKind(curves.cosine_warmup_with_min_lr),
    "warmup_stable_decay": ScheduleKind(curves.warmup_stable_decay),
}


def _is_rate(value: object) -> bool:
    return value is None or (_is_number(value) and float(value) >= 0)


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and value >= 0)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Rule: TypeAlias = tuple[Callable[[object], bool], str]

# What a value in `lr_scheduler_kwargs` must be, and its words; torch checks those of a plateau itself.
OPTION_RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("num_cycles", "power"), (_is_number, "a number")),
    **dict.fromkeys(
        ("lr_end", "min_lr", "min_lr_rate", "min_lr_ratio", "warmup_lr_rate"), (_is_rate, "a number of at least 0")
    ),
    **dict.fromkeys(("num_decay_steps", "num_stable_steps"), (_is_count, "a whole number of at least 0")),
    "timescale": (lambda value: value is None or (_is_number(value) and value > 0), "a number above 0"),
    **dict.fromkeys(
        ("warmup_type", "decay_type"), (lambda value: value in curves.RISES, f"one of {', '.join(curves.RISES)}")
    ),
}
_ANYTHING: Final[Rule] = (lambda value: True, "anything")

# What torch's plateau counts.
PLATEAU_COUNTERS: Final = ("last_epoch", "num_bad_epochs", "cooldown_counter")


def warmup_steps(args: TrainingArguments, max_steps: int) -> int:
    """Gives the updates of the warm-up: `warmup_steps`, a share of the run below 1; where it is 0, `warmup_ratio`."""
    if args.warmup_steps >= 1:
        return int(args.warmup_steps)
    return math.ceil(max_steps * (args.warmup_steps or args.warmup_ratio))


def create_schedule(
    optimizer: Optimizer, args: TrainingArguments, max_steps: int
) -> LearningRateSchedule | PlateauSchedule:
    """Gives the schedule that `args.lr_scheduler_type` names; the optimizer has the rate of step 0 afterwards.

    Raises:
        SettingsError: the name is unknown, or `lr_scheduler_kwargs` or the warm-up do not fit the schedule.
    """
    rate = float(optimizer.defaults.get("lr", optimizer.param_groups[0]["lr"]))
    factor = schedule_factor(args, max_steps, rate)
    if args.lr_scheduler_type == "reduce_lr_on_plateau":
        return _create_plateau(optimizer, args)
    return LearningRateSchedule(optimizer, factor)


def schedule_factor(args: TrainingArguments, max_steps: int, learning_rate: float | None = None) -> Factor:
    """Gives the formula of the schedule that `args` name, with no optimizer needed; a plateau counts as constant.

    Raises:
        SettingsError: as `create_schedule`.
    """
    if problems := _problems(args):
        raise SettingsError(problems)
    rate = args.learning_rate if learning_rate is None else learning_rate
    span = Span(warmup_steps(args, max_steps), max_steps, rate)
    kind = SCHEDULES[args.lr_scheduler_type]
    if kind.build is None:
        return curves.constant(span)
    try:
        return kind.build(span, **(args.lr_scheduler_kwargs or {}))
    except ValueError as error:
        raise SettingsError([f"lr_scheduler_kwargs.{error}. Correct it for {args.lr_scheduler_type!r}."]) from error


def _problems(args: TrainingArguments) -> list[str]:
    name = args.lr_scheduler_type
    kind = SCHEDULES.get(name)
    if kind is None:
        hint = did_you_mean(name, SCHEDULES)
        return [f"lr_scheduler_type: unknown schedule, got {name!r}.{hint} Use one of {', '.join(SCHEDULES)}."]
    setting, value = ("warmup_steps", args.warmup_steps) if args.warmup_steps else ("warmup_ratio", args.warmup_ratio)
    problems = []
    if value and not kind.warms_up:
        remedy = "Leave it out, or use lr_scheduler_type='constant_with_warmup'."
        problems.append(f"{setting}: {name!r} has no warm-up, got {value!r}. {remedy}")
    for option, given in (args.lr_scheduler_kwargs or {}).items():
        fits, words = OPTION_RULES.get(option, _ANYTHING)
        if option not in kind.options:
            known = f"{did_you_mean(option, kind.options)} {name!r} takes {', '.join(kind.options) or 'no options'}."
            problems.append(f"lr_scheduler_kwargs.{option}: unknown option, got {given!r}.{known}")
        elif kind.build is not None and not fits(given):
            problems.append(f"lr_scheduler_kwargs.{option}: must be {words}, got {given!r}. Correct it.")
    return problems


def _create_plateau(optimizer: Optimizer, args: TrainingArguments) -> PlateauSchedule:
    options: dict[str, Any] = dict(args.lr_scheduler_kwargs or {})
    if "mode" not in options:
        options["mode"] = _plateau_mode(args)
    try:
        return PlateauSchedule(ReduceLROnPlateau(optimizer, **options))
    except (TypeError, ValueError) as error:
        problem = f"lr_scheduler_kwargs: ReduceLROnPlateau refuses them: {error}, got {options}. Correct them."
        raise SettingsError([problem]) from error


def _plateau_mode(args: TrainingArguments) -> str:
    metric, greater = args.metric_for_best_model or "loss", args.greater_is_better
    if greater is None:
        greater = greater_is_better(metric)
    if greater is None:
        problem = f"greater_is_better: the name of the metric {metric!r} does not tell, got None."
        raise SettingsError([f"{problem} Set it, or lr_scheduler_kwargs={{'mode': 'min'}} or 'max'."])
    return "max" if greater else "min"


class LearningRateSchedule:
    """A learning rate that is a formula of the step.

    Attributes:
        optimizer: its groups' `lr` are written; the rates that they begin with are the bases, or their `initial_lr`
            where an earlier schedule left one.
        factor: the share of the base rate at a step, a pure function.
        base_lrs: the rate of each group at factor 1.
        last_step: updates counted so far, which is also the step whose rate the groups have now.
    """

    def __init__(self, optimizer: Optimizer, factor: Factor) -> None:
        self.optimizer = optimizer
        self.factor = factor
        self.base_lrs = _base_rates(optimizer)
        self.last_step = 0
        self._write_rates()

    def step(self) -> None:
        """Counts one update and sets the rate of the next."""
        self.last_step = last_step = self.last_step + 1
        factor = self.factor(last_step)
        groups, bases = self.optimizer.param_groups, self.base_lrs
        if len(groups) != len(bases):  # a group was added during the run
            bases = self.base_lrs = _base_rates(self.optimizer)
        for index, group in enumerate(groups):  # half the time of zip(strict=True)
            if type(group["lr"]) is float:
                group["lr"] = bases[index] * factor
            else:
                _write_rate(group, bases[index] * factor)

    def on_metric(self, value: SupportsFloat) -> None:
        """Does nothing: this schedule follows the step alone."""

    def get_last_lr(self) -> list[float]:
        """Gives the rate of each group now."""
        return _rates(self.optimizer)

    def state_dict(self) -> dict[str, object]:
        """Gives the counter and the base rates, as JSON holds them."""
        return {"last_step": self.last_step, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets counter and base rates, and writes the rates that follow from them."""
        _check_state(self, state, {"last_step", "base_lrs"}, groups=len(self.base_lrs))
        self.last_step, self.base_lrs = int(state["last_step"]), list(map(float, state["base_lrs"]))
        self._write_rates()

    def _write_rates(self) -> None:
        factor = self.factor(self.last_step)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            _write_rate(group, base * factor)


class PlateauSchedule:
    """A learning rate that falls when a metric stops improving: torch's `ReduceLROnPlateau`, JSON-able."""

    def __init__(self, scheduler: ReduceLROnPlateau) -> None:
        self.scheduler = scheduler
        self.optimizer = scheduler.optimizer
        self.base_lrs = _rates(self.optimizer)

    def step(self) -> None:
        """Does nothing: this schedule follows the metric alone."""

    def on_metric(self, value: SupportsFloat) -> None:
        """Counts one evaluation, and lowers the rate when the metric has not improved for `patience` of them."""
        self.scheduler.step(value)

    def get_last_lr(self) -> list[float]:
        """Gives the rate of each group now."""
        return _rates(self.optimizer)

    def state_dict(self) -> dict[str, object]:
        """Gives counters, the best metric (None before the first) and the rates, as JSON holds them."""
        counters = {name: getattr(self.scheduler, name) for name in PLATEAU_COUNTERS}
        best = float(self.scheduler.best)
        return {**counters, "best": best if math.isfinite(best) else None, "learning_rates": self.get_last_lr()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets what `state_dict` gave, and writes the rates."""
        _check_state(self, state, {*PLATEAU_COUNTERS, "best", "learning_rates"}, groups=len(self.base_lrs))
        for name in PLATEAU_COUNTERS:
            setattr(self.scheduler, name, int(state[name]))
        self.scheduler.best = self.scheduler.mode_worse if state["best"] is None else float(state["best"])
        for group, rate in zip(self.optimizer.param_groups, state["learning_rates"], strict=True):
            _write_rate(group, rate)
        self.scheduler._last_lr = [*self.get_last_lr()]


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _base_rates(optimizer: Optimizer) -> list[float]:
    """Gives the rates to scale, noted in the groups as torch's schedulers do, so that a second run finds them."""
    return [float(group.setdefault("initial_lr", float(group["lr"]))) for group in optimizer.param_groups]


def _write_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)  # a captured graph reads this very tensor
    else:
        group["lr"] = rate


def _check_state(schedule: object, state: Mapping[str, Any], keys: set[str], groups: int) -> None:
    where = type(schedule).__name__
    if set(state) != keys:
        raise CheckpointError(
            f"{where}: the state is of another schedule, got {sorted(state)}. Resume with the checkpoint's settings."
        )
    saved = len(state.get("base_lrs", state.get("learning_rates", ())))
    if saved != groups:
        raise CheckpointError(
            f"{where}: the optimizer has {groups} parameter groups, got a state of {saved}. "
            "Resume with the checkpoint's settings."
        )
