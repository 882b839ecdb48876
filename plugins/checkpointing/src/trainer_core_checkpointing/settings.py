"""The settings of the plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from trainer_core import Change, Interval, Section, interval

if TYPE_CHECKING:
    from trainer_core import Side, TrainingArguments


def _interval_in_updates(side: Side) -> int:
    return interval(side.values["steps"], side.max_steps) if side.values["strategy"] == "steps" else 0


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
        "on_invalid_checkpoint": "on_invalid_checkpoint",
        "on_save_error": "on_save_error",
        "checkpoint_async": "checkpoint_async",
        "overwrite_output_dir": "overwrite_output_dir",
    }
    when_changed: ClassVar[Mapping[str, Change]] = {
        "strategy": Change.said(),
        "steps": Change.said(meaning=_interval_in_updates),
        "total_limit": Change.said(),
        "only_model": Change.said(),
        "load_best_model_at_end": Change.said(),
        "resume_from_checkpoint": Change.free(),
        "on_invalid_checkpoint": Change.free(),
        "on_save_error": Change.free(),
        "checkpoint_async": Change.free(),
        "overwrite_output_dir": Change.said(),
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
    on_invalid_checkpoint: Literal["fall_back", "raise"] = "fall_back"
    """What follows when the newest checkpoint is damaged, or the best one at the end: take the newest valid one before
    it, or keep the weights of the last step, and say why; or raise. One that is named is never replaced by another."""
    on_save_error: Literal["retry", "prune", "stop"] = "retry"
    """What follows when the disk fails a save: go on and save when that is due again; first delete older checkpoints
    of this run where it is full, and save once more at once; or end the run. A run whose last save failed ends with
    the error in any case."""
    checkpoint_async: bool | None = None
    """Whether training goes on while a save is written, and waits for the copy of the state alone; None for saves of
    64 MB and more whose copy takes at most half of the memory that is free. The last save of a run is waited for."""
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

    def unread(self, args: TrainingArguments) -> Iterator[tuple[str, str]]:
        """Gives what is read with one strategy alone; who asks for a save by hand reads the rest."""
        if self.strategy != "steps":
            yield "save_steps", f"save_strategy={self.strategy!r}"

    @property
    def saves_best(self) -> bool:
        """Whether each new best evaluation is followed by a save."""
        return self.load_best_model_at_end or self.strategy == "best"
