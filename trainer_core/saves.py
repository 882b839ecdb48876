"""The saves of a run: which were asked for, and which are to be announced.

A save may be written while the training goes on; its announcement then waits for the boundary after its last flush.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core.state import Saving

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer


class Saves:
    """What became of the saves that a run asked for.

    Attributes:
        durable: (folder, step, epoch) of those that are durable and not announced yet, oldest first.
        is_last: no other save can follow the one that is asked for.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.durable: list[tuple[Path, int, float]] = []
        self.is_last = False
        self._last_step: int | None = None
        self._epochs: dict[int, float] = {}

    def ask(self, *, is_last: bool = False) -> Path | Saving | None:
        """Asks for a checkpoint of this moment; None where no plugin writes any.

        Args:
            is_last: the run ends after it although nobody asked for a stop.
        """
        state, self.is_last = self.trainer.state, is_last
        step = state.global_step
        if self._last_step is None:
            self._last_step = state.last_save_step  # of the checkpoint that the run was resumed from
        state.last_save_step = step
        self._epochs[step] = state.epoch
        try:
            answer: Path | Saving | None = self.trainer.bus.ask("write_checkpoint", trainer=self.trainer)
        except BaseException:
            self.finish(step, None)
            raise
        if answer is Saving.FAILED:
            self.finish(step, None)
        elif answer is not None and answer is not Saving.BEHIND:
            self.finish(step, answer)
        return answer

    def finish(self, step: int, checkpoint: Path | None) -> None:
        """Takes note of how the save of `step` ended; see `Trainer.finish_save`."""
        state = self.trainer.state
        epoch = self._epochs.pop(step, state.epoch)
        if checkpoint is not None:
            self._last_step = step
            self.durable.append((checkpoint, step, epoch))
        elif state.last_save_step == step:
            state.last_save_step = -1 if self._last_step is None else self._last_step

    def announce(self) -> None:
        """Tells the plugins of the checkpoints that are durable; the counters are those of the save meanwhile.

        Plugins, and callbacks in the guide's form above all, build the folder's name from `state.global_step`.
        """
        state = self.trainer.state
        while self.durable:
            checkpoint, step, epoch = self.durable.pop(0)
            now = state.global_step, state.epoch
            state.global_step, state.epoch = step, epoch
            try:
                self.trainer.bus.tell("on_save", trainer=self.trainer, checkpoint=checkpoint)
            finally:
                state.global_step, state.epoch = now
