"""What an error leaves of a run: the last step boundary is saved, so that no update is lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trainer_core.errors import CheckpointError
from trainer_core.phases import AT_WORK, Phase
from trainer_core.state import Saving

if TYPE_CHECKING:
    from trainer_core.loop import Loop

logger = logging.getLogger("trainer_core.rescue")


def rescue(loop: Loop, error: BaseException) -> None:
    """Saves the last step boundary of a run that `error` ends, and notes in the error where the run can go on.

    Nothing is saved where there is nothing new, where the user wants to stop at once, where the error is the
    optimizer's own (weights may be half updated) or that of a save, and where the ranks do not fail together.
    """
    step = loop.state.global_step
    if not isinstance(error, Exception) or loop.phase is Phase.INIT or not loop.bus.listens("write_checkpoint"):
        return
    if not _is_at_boundary(loop, error) or step in (loop.tally.first_step, loop.state.last_save_step):
        _note_newest(loop, error)
        return
    try:
        problem = _unfit(loop) or _save(loop, error)
    except Exception as failure:
        problem = str(failure)
        loop.journal.record("rescue_failed", step, {"why": repr(failure)})
    if problem:
        error.add_note(f"step {step} could not be saved: {problem}")
        _note_newest(loop, error)


def _is_at_boundary(loop: Loop, error: BaseException) -> bool:
    """Tells whether the last update's state is there: in its last phase a run may have brought the best weights back.

    What fails in that phase may also be the save of that update, which was begun before.
    """
    if loop.phase is Phase.STOP:
        return loop.trainer.loaded_best_from is None and not isinstance(error, CheckpointError)
    return loop.phase in AT_WORK


def _unfit(loop: Loop) -> str:
    """Gives why the run is not at a step boundary that can be saved; nothing where it is."""
    if loop.stepper.is_torn:
        return "the error came out of the optimizer's step, weights may be half updated."
    if loop.ranks.world_size > 1 and not loop.agreement.is_failing:
        return "not all ranks are here to save it."
    loop.stepper.guard.settle()
    return ""


def _save(loop: Loop, error: BaseException) -> str:
    loop.give_up()
    checkpoint = loop.saves.ask(is_last=True)
    loop.saves.announce()
    if checkpoint is None or isinstance(checkpoint, Saving):
        return "no plugin could write it." if checkpoint is None else "its write failed, see above."
    step = loop.state.global_step
    error.add_note(f"saved at step {step} first: resume_from_checkpoint=True goes on from {checkpoint}")
    loop.journal.record("saved_on_error", step, {"checkpoint": checkpoint.name, "error": type(error).__name__})
    return ""


def _note_newest(loop: Loop, error: BaseException) -> None:
    newest = loop.state.last_save_step
    if newest >= 0:
        error.add_note(f"the newest checkpoint is of step {newest}: resume_from_checkpoint=True goes on from there")
