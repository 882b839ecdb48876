"""The metric that a plugin watches: its full name, its direction, and how its value is taken out of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer_core import SettingsError, greater_is_better, missing_metric

if TYPE_CHECKING:
    from trainer_core import Plan, Trainer, TrainingArguments


@dataclass(frozen=True, slots=True)
class Watched:
    """A metric.

    Attributes:
        name: in the metrics of an evaluation, such as `eval_loss` or `eval_french_accuracy`.
        greater_is_better: whether more of it is better; None when nothing tells.
        setting: where it was named, for messages.
    """

    name: str
    greater_is_better: bool | None
    setting: str

    def value_in(self, metrics: Mapping[str, Any]) -> float:
        """Gives its value.

        Raises:
            SettingsError: an evaluation lacks it, or it is no number.
        """
        if self.name not in metrics:
            raise SettingsError([missing_metric(self.setting, self.name, metrics)])
        value = metrics[self.name]
        try:
            return float(value)
        except (TypeError, ValueError):
            what = f"{self.setting}: {self.name} is no number, got {value!r}. Give a number in compute_metrics."
            raise SettingsError([what]) from None


def watched(args: TrainingArguments, section: str, metric: str | None, direction: bool | None = None) -> Watched:
    """Gives the metric that a section names, or else `metric_for_best_model`, or else the loss.

    Args:
        args: of the run.
        section: the plugin's name.
        metric: the section's own metric.
        direction: the section's own `greater_is_better`.
    """
    of_args = _full(args.metric_for_best_model or "loss")
    name = of_args if metric is None else _full(metric)
    if direction is None and name == of_args:
        direction = args.greater_is_better
    setting = _OF_ARGS if metric is None else f"{section}.metric"
    return Watched(name, greater_is_better(name) if direction is None else direction, setting)


def direction_problems(args: TrainingArguments, section: str, metric: str | None, own: bool | None) -> Iterator[str]:
    """Gives what is wrong with the direction of a section's metric."""
    found = watched(args, section, metric, own)
    where = f"{section}.greater_is_better"
    is_of_args = args.metric_for_best_model is not None and found.name == _full(args.metric_for_best_model)
    if is_of_args and args.greater_is_better not in (None, found.greater_is_better):
        yield (
            f"{where}: contradicts greater_is_better={args.greater_is_better} for the same metric, got {own}. "
            f"Leave it out."
        )
    elif found.greater_is_better is None and not is_of_args:  # of that one the core says so
        yield (
            f"{where}: is needed, because the name {metric!r} does not tell whether more is better, got None. "
            f"Set it to True or False."
        )


def refuse_unknown(trainer: Trainer, plan: Plan, metric: Watched) -> None:
    """Adds to the plan that no evaluation gives `metric`, where that can be told before training."""
    from trainer_core import metric_names

    args = trainer.args
    if metric.setting == _OF_ARGS and args.metric_for_best_model is not None and args.eval_strategy != "no":
        return  # the core says so
    known = metric_names(trainer)
    if known is not None and metric.name not in known:
        plan.contradict(missing_metric(metric.setting, metric.name, sorted(known)))


_OF_ARGS = "metric_for_best_model"


def _full(name: str) -> str:
    return name if name.startswith("eval_") else f"eval_{name}"
