"""Options that nothing reads beside the others: where somebody gave one, that is said when a run begins.

They are no mistakes: a script may keep `eval_steps` and change `eval_strategy` on its command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainer_core.errors import PluginError
from trainer_core.settings.provenance import DERIVED
from trainer_core.settings.section import DEFAULT, Given, problem

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments


def unread_options(args: TrainingArguments) -> list[str]:
    """Gives a sentence for each option that was given and that nothing reads.

    Raises:
        PluginError: a section names what is no option.
    """
    found = [*_of_core(args), *(pair for section in args.sections.values() for pair in section.unread(args))]
    return [
        problem(name, f"has no effect with {other}", Given(getattr(args, name), source), "Leave out one of the two.")
        for name, other in found
        if (source := _source(args, name)) != DEFAULT and not source.startswith(DERIVED)
    ]


def _source(args: TrainingArguments, name: str) -> str:
    if name not in args.sources:
        raise PluginError(f"unread: a section names what is no option, got {name!r}. Give the flat name of a field.")
    return args.sources[name]


def _of_core(args: TrainingArguments) -> Iterator[tuple[str, str]]:
    """Gives (option, what makes it unread), as `Section.unread` does."""
    if args.eval_strategy != "steps":
        yield "eval_steps", f"eval_strategy={args.eval_strategy!r}"
    if args.eval_strategy == "no":
        yield "eval_delay", "eval_strategy='no'"
        if not args.eval_on_start:
            yield "greater_is_better", "eval_strategy='no'"
    if args.train_sampling_strategy != "group_by_length":
        yield "length_column_name", f"train_sampling_strategy={args.train_sampling_strategy!r}"
    if args.prediction_loss_only:
        for name in ("include_for_metrics", "batch_eval_metrics", "eval_accumulation_steps"):
            yield name, "prediction_loss_only=True"
