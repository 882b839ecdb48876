"""The settings of both plugins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from trainer_core import Change, Section
from trainer_core_early_stopping.duration import Duration
from trainer_core_early_stopping.watching import direction_problems

if TYPE_CHECKING:
    from trainer_core import TrainingArguments

MetricName = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class EarlyStoppingSettings(Section):
    """Ends a run whose metric no longer improves."""

    switch: ClassVar[str | None] = "early_stopping_patience"
    flat: ClassVar[Mapping[str, str]] = {
        "early_stopping_patience": "patience",
        "early_stopping_threshold": "threshold",
    }
    when_changed: ClassVar[Mapping[str, Change]] = {
        "patience": Change.said(),
        "threshold": Change.said(),
        "metric": Change.said("patience is counted from here"),
        "greater_is_better": Change.said("patience is counted from here"),
    }

    patience: Count = 1
    """Evaluations in a row without an improvement after which the run ends."""
    threshold: Annotated[float, Field(ge=0)] = 0.0
    """An improvement is a value better by at least this than the last one that was an improvement, in the metric's
    unit; 0 for any better value."""
    metric: MetricName | None = None
    """The metric, with or without `eval_`; None for `metric_for_best_model`, and the loss where that is not set."""
    greater_is_better: bool | None = None
    """Whether more of the metric is better; None for what the metric's name or the option of that name tells."""

    def contradictions(self, args: TrainingArguments) -> Iterator[str]:
        """Gives what cannot be meant together: no evaluations, or a metric of unknown direction."""
        yield from evaluations_problems(args, "early_stopping")
        yield from direction_problems(args, "early_stopping", self.metric, self.greater_is_better)


class StopAtSettings(Section):
    """Ends a run when the first of its rules is met."""

    flat: ClassVar[Mapping[str, str]] = {"max_time": "max_time"}
    when_changed: ClassVar[Mapping[str, Change]] = dict.fromkeys(
        ("metric", "at_least", "at_most", "max_time", "max_tokens", "max_samples"), Change.said()
    )

    metric: MetricName | None = None
    """The metric of `at_least` and `at_most`, with or without `eval_`; None for `metric_for_best_model`, and the loss
    where that is not set."""
    at_least: float | None = None
    """The run ends at an evaluation whose metric is this or more; None for no such rule."""
    at_most: float | None = None
    """The run ends at an evaluation whose metric is this or less; None for no such rule."""
    max_time: Duration | None = None
    """Seconds that all parts of a run may take together, or text like "90m", "1d12h" or "01:30:00"; None for no such
    rule."""
    max_tokens: Count | None = None
    """Tokens of the main input, over all ranks, with which the run ends; None for no such rule."""
    max_samples: Count | None = None
    """Samples, over all ranks, with which the run ends; None for no such rule."""

    @property
    def has_goal(self) -> bool:
        """Whether a rule is about a metric."""
        return self.at_least is not None or self.at_most is not None

    def contradictions(self, args: TrainingArguments) -> Iterator[str]:
        """Gives what cannot be meant together: no rule, half a rule, or a rule about what is not measured."""
        if not self.model_fields_set:
            rules = "metric with at_least or at_most, max_time, max_tokens or max_samples"
            yield f"stop_at: has no rule. Give it {rules}, or leave it out."
        if self.metric is not None and not self.has_goal:
            yield f"stop_at.metric: has no bound, got {self.metric!r}. Set stop_at.at_least or stop_at.at_most."
        if self.at_least is not None and self.at_most is not None:
            yield f"stop_at.at_most: contradicts at_least={self.at_least}, got {self.at_most}. Keep one of the two."
        if self.has_goal and not args.eval_on_start:
            yield from evaluations_problems(args, "stop_at.metric")
        if self.max_tokens is not None and not args.counts_tokens:
            yield (
                f"stop_at.max_tokens: needs tokens to be counted, and they are not, got {self.max_tokens}. "
                f'Set include_num_input_tokens_seen="all" or "non_padding".'
            )


def evaluations_problems(args: TrainingArguments, where: str) -> Iterator[str]:
    """Gives what is wrong with a setting that needs evaluations in a run without any."""
    if args.eval_strategy == "no":
        yield f"{where}: needs evaluations, and there are none, got eval_strategy='no'. Set eval_strategy."
