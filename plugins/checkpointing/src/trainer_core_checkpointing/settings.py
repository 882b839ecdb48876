"""The settings of the plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from trainer_core import Interval, Section

if TYPE_CHECKING:
    from trainer_core import TrainingArguments


class CheckpointingSettings(Section):
    """When checkpoints are written, and which of them are kept."""

    on_by_default: ClassVar[bool] = True
    flat: ClassVar[Mapping[str, str]] = {
        "save_strategy": "strategy",
        "save_steps": "steps",
        "save_total_limit": "total_limit",
        "save_only_model": "only_model",
        "load_best_model_at_end": "load_best_model_at_end",
        "resume_from_checkpoint": "resume_from_checkpoint",
        "overwrite_output_dir": "overwrite_output_dir",
    }

    strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When to save: never by counting, every so many steps and at the last, after each epoch, at each new best
    evaluation."""
    steps: Interval = 500
    """Steps between two checkpoints, or their share of all steps when below 1; read with strategy "steps"."""
    total_limit: Annotated[int, Field(ge=1)] | None = None
    """Checkpoints that are kept, the newest and the best always among them; None for all."""
    only_model: bool = False
    """Whether checkpoints hold the model alone; a run cannot be resumed from them."""
    load_best_model_at_end: bool = False
    """Whether each new best evaluation is followed by a save, and the best model loaded when training is done."""
    resume_from_checkpoint: str | bool | None = None
    """What `train()` resumes from when it is called without that argument: a folder, or True for the newest
    checkpoint in `output_dir`; None to start anew."""
    overwrite_output_dir: bool = False
    """Whether checkpoints of other runs in `output_dir` are deleted as soon as this run has one of its own."""

    def contradictions(self, args: TrainingArguments) -> Iterator[str]:
        """Gives what cannot be meant together: a best model without evaluations."""
        if args.eval_strategy != "no":
            return
        for name, value in (("save_strategy", self.strategy), ("load_best_model_at_end", self.load_best_model_at_end)):
            if value is True or value == "best":
                source = args.sources.get(name, "default")
                given = "" if source == "default" else f" (from {source})"
                yield f"{name}: needs evaluations, and there are none, got {value!r}{given}. Set eval_strategy."

    @property
    def saves_best(self) -> bool:
        """Whether each new best evaluation is followed by a save."""
        return self.load_best_model_at_end or self.strategy == "best"
