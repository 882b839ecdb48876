"""How a run ended, kept so that resuming a finished run trains nothing and changes nothing.

The last checkpoint of a run is older than its end: the epoch is closed, a last evaluation may be made and the closing
row is logged after it. The plugin that writes checkpoints keeps what `closing_state` gives beside them, and hands it
back as `Trainer.finished` when the run is resumed from its last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer_core.phases import Signal
from trainer_core.state import Request

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.closing")


def closing_state(trainer: Trainer, num_rows: int) -> dict[str, Any]:
    """Gives how the run ended, as plain values; in `on_train_end`.

    Args:
        trainer: whose run it was.
        num_rows: rows of the log history that its last checkpoint surely holds; later ones are in what is given.
    """
    request = trainer.stop_request
    return {
        "counters": trainer.state.counters(),
        "num_rows": num_rows,
        "rows": trainer.state.log_history[num_rows:],
        "metrics": trainer.train_metrics,
        "outcome": trainer.outcome,
        "stop": None if request is None else {"by": request.by, "why": request.why},
    }


def is_finished(trainer: Trainer) -> bool:
    """Tells whether the run that was loaded had ended, and its settings do not let it go on."""
    if trainer.finished is None:
        return False
    counters, state = trainer.finished["counters"], trainer.state
    is_done = counters["global_step"] >= state.max_steps
    epochs_are_done = bool(state.num_train_epochs) and counters["epochs_done"] >= state.num_train_epochs
    return is_done or epochs_are_done or counters["stopped_by"] is not None


def load_closing(trainer: Trainer) -> Request:
    """Brings counters and log history to where the run ended; gives the request that ended it."""
    finished, state = trainer.finished, trainer.state
    assert finished is not None
    state.restore(finished["counters"])
    for name in ("logging_steps", "eval_steps", "save_steps"):  # else resolved when training begins
        setattr(state, name, finished["counters"][name])
    state.log_history[finished["num_rows"] :] = finished["rows"]
    logger.info(
        "resume_from_checkpoint: the run was %s at step %d. Nothing is trained, and nothing is written.",
        finished["outcome"],
        state.global_step,
    )
    stop: Mapping[str, str] = finished["stop"] or {"by": "max_steps", "why": "the run had ended"}
    return Request(Signal.STOP, stop["by"], stop["why"])
