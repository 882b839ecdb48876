"""What a run knows about itself: counters, the log history, the best metric, and what was asked of it.

The counters are written by the loop alone, before the hooks of that moment fire; they are read by everyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import PurePath
from typing import Any

from trainer_core.phases import Signal


@dataclass(frozen=True, slots=True)
class Request:
    """A raised signal with its author and reason.

    Attributes:
        signal: what is asked for.
        by: who asks: a plugin's name, a setting, an operating-system signal.
        why: the reason, in words that stand alone in the journal.
        interrupt: for STOP: the run is cut short and goes on when it is resumed; a stop without it is final.
    """

    signal: Signal
    by: str
    why: str
    interrupt: bool = False

    @property
    def is_planned(self) -> bool:
        """Whether the run has come to the end that its plan gives it."""
        return self.by in ("max_steps", "num_train_epochs")


class Saving(Enum):
    """What `write_checkpoint` answers while there is no checkpoint to announce."""

    BEHIND = "behind"
    """It is written while the training goes on; `Trainer.finish_save` says how that ended."""
    FAILED = "failed"
    """It could not be written, which was said; the run goes on without it."""


@dataclass(slots=True)
class TrainerState:
    """Counters of a run, under the guide's names.

    Attributes:
        epoch: epochs trained, with the fraction of the open one.
        global_step: updates done since the run began.
        max_steps: updates that the run will do.
        num_train_epochs: epochs that the run will touch.
        epochs_done: whole epochs that are closed; the index of the open epoch.
        batches_done: micro-batches of the open epoch that this rank has trained on.
        epoch_is_open: between the begin and the end of an epoch.
        train_batch_size: samples a micro-batch a rank.
        global_batch_size: samples an update over all ranks, as long as the run lasts.
        data_window: samples a micro-batch over all ranks had when the run began.
        logging_steps, eval_steps, save_steps: updates between two of a kind; 0 for never.
        num_samples_seen: samples trained on, over all ranks.
        num_input_tokens_seen: tokens of the main input trained on, over all ranks; 0 while they are not counted.
        log_history: every logged row, oldest first; appended only.
        best_metric: best value of `metric_for_best_model` so far.
        best_global_step: the update at which it was measured.
        best_model_checkpoint: path of the checkpoint that holds the best model.
        stopped_by: who ended the run for good, and why; None while it may go on.
        is_hyper_param_search: whether the run is one of many that search for good settings.
        trial_name: of the run among these.
        trial_params: the settings that the run tries.
    """

    epoch: float = 0.0
    global_step: int = 0
    max_steps: int = 0
    num_train_epochs: int = 0
    epochs_done: int = 0
    batches_done: int = 0
    epoch_is_open: bool = False
    train_batch_size: int = 0
    global_batch_size: int = 0
    data_window: int = 0
    logging_steps: int = 0
    eval_steps: int = 0
    save_steps: int = 0
    num_samples_seen: int = 0
    num_input_tokens_seen: int = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    stopped_by: dict[str, str] | None = None
    last_eval_step: int = -1
    last_save_step: int = -1
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None

    def counters(self) -> dict[str, Any]:
        """Gives everything that a checkpoint keeps, but the log history, as a JSON-able mapping."""
        kept = asdict_without_history(self)
        for name in _OF_THIS_PROCESS:
            del kept[name]
        if self.best_model_checkpoint is not None:
            kept["best_model_checkpoint"] = PurePath(self.best_model_checkpoint).name  # the folder may be moved
        return kept

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Takes over `counters` of a checkpoint; names that this version does not know are left out."""
        known = {entry.name for entry in fields(self)} - {"log_history", *_OF_THIS_PROCESS, *_OF_THE_SETTINGS}
        for name in known & counters.keys():
            setattr(self, name, counters[name])


_OF_THIS_PROCESS = (
    "is_local_process_zero",
    "is_world_process_zero",
    "is_hyper_param_search",
    "trial_name",
    "trial_params",
)
_OF_THE_SETTINGS = (
    "max_steps",
    "num_train_epochs",
    "train_batch_size",
    "global_batch_size",
    "data_window",
    "logging_steps",
    "eval_steps",
    "save_steps",
)


def asdict_without_history(state: TrainerState) -> dict[str, Any]:
    """Gives the fields of `state` without the log history, whose copy would grow with the run."""
    history, state.log_history = state.log_history, []
    try:
        return {name: value for name, value in asdict(state).items() if name != "log_history"}
    finally:
        state.log_history = history
