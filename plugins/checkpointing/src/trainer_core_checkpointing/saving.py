"""How a save goes: at once or behind the training, and what follows when it fails.

    begin      this moment's content; a save behind copies its tensors, which is all that training waits for
    write      by a second thread, or at once
    land       at a later boundary on all ranks: the checkpoint is told, or its error served
    fail       by the policy: later, once more with space made, or the end of the run

One save is in flight. What ends a call of `train()` is written at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import torch

from trainer_core import Saving, Signal
from trainer_core_checkpointing import disk, files, folder
from trainer_core_checkpointing.account import Account
from trainer_core_checkpointing.agreement import on_main
from trainer_core_checkpointing.content import Content, HostMemory
from trainer_core_checkpointing.failures import WriteError, together
from trainer_core_checkpointing.manifest import FileEntry
from trainer_core_checkpointing.settings import CheckpointingSettings
from trainer_core_checkpointing.writing import Writer

if TYPE_CHECKING:
    from trainer_core import Trainer

logger = logging.getLogger("trainer_core.checkpointing")

WORTH_BYTES: Final = 64 * 2**20
"""From this size on a save is written behind by default: a smaller one takes about as long as handing it over."""
_SHARE_OF_MEMORY: Final = 0.5
"""Of the memory that is there, what copies may take by default."""
_FELT_SECONDS: Final = 0.1
_WAITED: Final = (
    "checkpoint_async: a save was due while the one of step %d was still being written; training waited %.1f s. "
    "Save less often, or to a faster disk."
)


@dataclass(frozen=True, slots=True)
class Flight:
    """A save that a second thread writes: its end gives this rank's entries, alone the folder as well."""

    content: Content
    end: Future[tuple[Mapping[str, FileEntry], Path | None]]


class Saver:
    """Makes the saves of one run.

    Args:
        trainer: whose run it is.
        settings: of the plugin.
        writer: writes them.
    """

    def __init__(self, trainer: Trainer, settings: CheckpointingSettings, writer: Writer) -> None:
        self.trainer = trainer
        self.settings = settings
        self.writer = writer
        self.flight: Flight | None = None
        self._memory = HostMemory()
        self._thread = ThreadPoolExecutor(1, "checkpointing")
        self._has_pruned = False
        self._has_said_waiting = False
        self.account = Account(trainer, writer.output_dir, settings.on_save_error)

    def save(self, random_states: Mapping[str, Any]) -> Path | Saving:
        """Saves this moment, at once or behind the training.

        Raises:
            CheckpointError: it failed, and the policy is to stop.
        """
        has_pruned = self._wait_for_the_last() if self.flight is not None else self._has_pruned
        self._has_pruned = False
        step = self.trainer.state.global_step
        self.account.num_saves += 1
        try:
            return self._try(random_states)
        except WriteError as error:
            failure = error
        if not has_pruned and self._makes_space(failure):
            try:
                return self._try(random_states)
            except WriteError as error:
                failure = error
        self.account.fail(step, failure)
        return Saving.FAILED

    def make_way(self) -> None:
        """Waits for the save in flight, so that it is announced before the next one may rotate it away.

        Raises:
            CheckpointError: it failed, and the policy is to stop.
        """
        if self.flight is not None:
            self._has_pruned = self._wait_for_the_last()

    def poll(self) -> None:
        """Lands the save in flight if it is written on all ranks; on all of them at the same boundary.

        Raises:
            CheckpointError: it failed, and the policy is to stop.
        """
        flight, ranks = self.flight, self.trainer.ranks
        if flight is None:
            return
        is_open = not flight.end.done()
        if ranks.world_size > 1:
            is_open = bool(ranks.max(torch.tensor(float(is_open), device=ranks.device)).item())
        if not is_open and self._lands():
            self._has_pruned = True
            self.trainer.request(Signal.SAVE, by="on_save_error", why="older checkpoints made space for it")

    def finish(self) -> None:
        """Waits for the save in flight, for the run is over.

        Raises:
            CheckpointError: the last save of the run failed.
        """
        if self.flight is not None:
            self._lands()
        self.account.check()

    def give_up(self) -> None:
        """Lets a save in flight end at its next piece; nobody waits for it any more."""
        if self.flight is not None:
            self.flight.content.given_up.set()

    def close(self) -> None:
        """Ends the thread; what is in flight in a run that failed is finished first."""
        flight, self.flight = self.flight, None
        self._thread.shutdown()
        if flight is None:
            return
        problem = flight.end.exception()
        if problem is not None:
            logger.warning("%s: %s. %s", flight.content.target, problem, folder.newest_in_words(self.writer.output_dir))
        if self.trainer.is_main_rank:
            self.writer.discard(flight.content.staging)

    # At once, or behind

    def _try(self, random_states: Mapping[str, Any]) -> Path | Saving:
        """Writes this moment, or begins to.

        Raises:
            WriteError: on every rank, where the disk failed one; nothing of it is left.
        """
        content = self._content(random_states)
        try:
            content = self.writer.begin(content)
            if self._is_behind(content):
                self._take_off(content)
                return Saving.BEHIND
            return self._write_at_once(content)
        except BaseException:
            self._discard(content)
            raise

    def _content(self, random_states: Mapping[str, Any]) -> Content:
        """Gives this moment's content; what it says of the best model is right once it is a checkpoint."""
        state = self.trainer.state
        before = state.best_model_checkpoint
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = self.account.path_of(state.global_step)
        best = state.best_model_checkpoint
        try:
            content = self.writer.content(random_states)
        finally:
            state.best_model_checkpoint = before
        return replace(content, keep=() if best is None else (Path(best).name,))

    def _write_at_once(self, content: Content) -> Path:
        entries = together(self.trainer, lambda: self.writer.write(content, in_parallel=True))
        self._place_together(content, entries)
        self.account.succeed(content.step)
        return content.target

    def _place_together(self, content: Content, entries: list[dict[str, FileEntry]]) -> None:
        merged = {name: entry for of_rank in entries for name, entry in of_rank.items()}
        is_main = self.trainer.is_main_rank
        together(self.trainer, lambda: self._place(content, merged) if is_main else None)

    def _place(self, content: Content, entries: Mapping[str, FileEntry]) -> Path:
        target = self.writer.place(content, entries)
        run = self.writer.template.run
        if self.settings.overwrite_output_dir:
            folder.delete_of_others(target.parent, run)
        folder.rotate(target.parent, self.settings.total_limit, run, content.keep)
        return target

    def _is_behind(self, content: Content) -> bool:
        """Whether the training goes on while this is written; decided by the main rank, whose part is the largest."""
        wanted = self.settings.checkpoint_async
        if self.trainer.is_stopping or wanted is False:
            return False
        if wanted is True:
            return True
        num_bytes = content.num_bytes
        memory = disk.available_memory()
        fits = memory is None or self._memory.num_bytes > 0 or num_bytes <= _SHARE_OF_MEMORY * memory
        answer: bool = self.trainer.ranks.from_main(num_bytes >= WORTH_BYTES and fits)
        return answer

    def _take_off(self, content: Content) -> None:
        kept = self._memory.copy(content)
        is_alone = self.trainer.ranks.world_size == 1

        def work() -> tuple[Mapping[str, FileEntry], Path | None]:
            entries = self.writer.write(kept, in_parallel=False)
            return entries, self._place(kept, entries) if is_alone else None

        self.flight = Flight(kept, self._thread.submit(work))

    def _end_of(self, flight: Flight) -> Path:
        """Gives the folder of a save that was in flight, durable."""
        ends = together(self.trainer, flight.end.result)
        if len(ends) > 1:
            self._place_together(flight.content, [dict(entries) for entries, _ in ends])
        return flight.content.target

    def _lands(self) -> bool:
        """Ends the flight and tells the run how; gives whether it failed and space was made for another try."""
        assert self.flight is not None
        flight, self.flight = self.flight, None
        step = flight.content.step
        try:
            target = self._end_of(flight)
        except WriteError as error:
            self._discard(flight.content)
            has_pruned = self._makes_space(error)
            self.account.fail(step, error)
            return has_pruned
        self.account.succeed(step)
        self.trainer.finish_save(step, target)
        return False

    def _wait_for_the_last(self) -> bool:
        """Ends the flight before another save; tells whether it failed and space was made for that."""
        assert self.flight is not None
        step, started = self.flight.content.step, perf_counter()
        has_pruned = self._lands()
        seconds = perf_counter() - started
        if seconds > _FELT_SECONDS and not self._has_said_waiting and not self.trainer.is_stopping:
            self._has_said_waiting = True
            if self.trainer.is_main_rank:
                logger.warning(_WAITED, step, seconds)
        return has_pruned

    # When it fails

    def _makes_space(self, error: WriteError) -> bool:
        """Deletes older checkpoints where that may help and the policy says so; tells whether any is gone."""
        if self.settings.on_save_error != "prune" or not error.is_full:
            return False
        output_dir, best = self.writer.output_dir, self.trainer.state.best_model_checkpoint
        keep = [] if best is None else [Path(best).name]

        def work() -> list[str]:
            return folder.prune(output_dir, self.writer.template.run, keep, self._has_space)

        gone = on_main(self.trainer, work)
        if gone and self.trainer.is_main_rank:
            logger.warning("%s: %s. Deleted to make space: %s.", output_dir, error, ", ".join(gone))
            self.trainer.record("checkpoints_pruned", why=str(error), names=gone)
        return bool(gone)

    def _has_space(self) -> bool:
        return files.calls.free_bytes(self.writer.output_dir) >= self.writer.needed

    def _discard(self, content: Content) -> None:
        if self.trainer.is_main_rank:
            self.writer.discard(content.staging)
