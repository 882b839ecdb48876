"""The account of a run's saves: which is the last, which failed, and what that means for the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core import CheckpointError
from trainer_core_checkpointing import folder
from trainer_core_checkpointing.failures import WriteError

if TYPE_CHECKING:
    from trainer_core import Trainer

logger = logging.getLogger("trainer_core.checkpointing")


class Account:
    """What became of the saves of one run.

    Args:
        trainer: whose run it is.
        output_dir: where its checkpoints are.
        policy: what `on_save_error` says.

    Attributes:
        num_saves: how many were begun.
    """

    def __init__(self, trainer: Trainer, output_dir: Path, policy: str) -> None:
        self.trainer = trainer
        self.output_dir = output_dir
        self.policy = policy
        self.num_saves = 0
        self._open: tuple[int, WriteError] | None = None
        self._failures: list[tuple[int, str]] = []

    def succeed(self, step: int) -> None:
        """Accounts for a save that is durable."""
        self._open = None
        state = self.trainer.state
        if state.best_global_step == step:
            state.best_model_checkpoint = self.path_of(step)

    def fail(self, step: int, error: WriteError) -> None:
        """Accounts for a save that failed, and says so.

        Raises:
            CheckpointError: the policy is to stop.
        """
        trainer, self._open = self.trainer, (step, error)
        trainer.finish_save(step, None)
        self._failures.append((step, str(error)))
        trainer.record("save_failed", of_step=step, why=str(error), policy=self.policy)
        if self.policy == "stop":
            raise self._in_full(step, error)
        if trainer.is_main_rank:
            more = "" if trainer.is_stopping else " The run goes on and saves when that is due again."
            logger.warning("%s: %s. %s%s", self._target_of(step), error, folder.newest_in_words(self.output_dir), more)

    def check(self) -> None:
        """Raises CheckpointError if no save has succeeded since the last one that failed; at the end of a run."""
        if self._open is not None:
            raise self._in_full(*self._open)

    def notes(self) -> Iterator[tuple[str, str]]:
        """Gives (label, text) for the summary of the run."""
        if self._failures:
            step, problem = self._failures[-1]
            yield "saves", f"{len(self._failures)} of {self.num_saves} failed, the last of step {step}: {problem}"

    def path_of(self, step: int) -> str:
        """Gives the path of a checkpoint as the run's state names it."""
        return str(Path(self.trainer.args.output_dir) / folder.name_of(step))

    def _target_of(self, step: int) -> Path:
        return self.output_dir / folder.name_of(step)

    def _in_full(self, step: int, error: WriteError) -> CheckpointError:
        remedy = "Free space or repair the disk, then resume from there."
        newest = folder.newest_in_words(self.output_dir)
        result = CheckpointError(f"{self._target_of(step)}: {error}. {newest} {remedy}")
        result.__cause__ = error
        return result
