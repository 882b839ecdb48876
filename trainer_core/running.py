"""One call of `train()`: what is changed for it and put back, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from trainer_core.boundary import Interrupted
from trainer_core.data.reading import dead_worker
from trainer_core.loop import Loop
from trainer_core.ownership import owned
from trainer_core.phases import Phase, Signal
from trainer_core.process import determinism, own_random_states, tf32
from trainer_core.rescue import rescue
from trainer_core.state import TrainerState
from trainer_core.watching import begin_watch, lost_rank, reunite

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer
    from trainer_core.watch import Watch

ONE_PRESS_SECONDS: Final = 2.0
"""A terminal and a launcher both hand the same Ctrl-C on to a rank; within this time that counts as one."""


def _is_foreign(number: signal.Signals) -> bool:
    """Tells whether a handler was set past Python: Python would not put it back."""
    handler = signal.getsignal(number)
    if handler is not signal.SIG_DFL or os.name == "nt":
        return handler is None
    action = ctypes.create_string_buffer(512)  # more than any system's `struct sigaction`, whose first field it is
    ctypes.CDLL(None).sigaction(int(number), None, action)
    return bool(ctypes.c_void_p.from_buffer(action).value)


class Running:
    """A context around the loop: random states, determinism, signal handlers, teardown.

    Args:
        trainer: whose run it is.
        resume_from: as in `Trainer.train`.
    """

    def __init__(self, trainer: Trainer, resume_from: str | Path | bool | None) -> None:
        self.trainer = trainer
        trainer.state = TrainerState(
            is_world_process_zero=trainer.ranks.is_main, is_local_process_zero=trainer.ranks.local_rank == 0
        )
        source = resume_from if isinstance(resume_from, bool) else str(resume_from) if resume_from else False
        trainer.bus.begin()
        self.loop = Loop(trainer, source)
        self.is_active = False
        self.is_ending = False
        self.signalled_at = -ONE_PRESS_SECONDS
        self.process = os.getpid()
        self.watch: Watch | None = None
        self.undo = ExitStack()

    def __enter__(self) -> Running:
        args, rank = self.trainer.args, self.trainer.ranks.rank
        self.trainer.outcome = ""
        self.trainer.memory.begin()
        self.trainer.resume_source = self.loop.resume_from
        self.trainer.resumed_from = self.trainer.loaded_best_from = self.trainer.stop_request = None
        self.trainer.finished = None
        self.undo.enter_context(own_random_states(args.seed + rank))
        self.undo.enter_context(determinism(full=args.full_determinism))
        self.undo.enter_context(tf32(args.tf32))
        self.undo.enter_context(self.interrupts())
        self.trainer.bus.is_held = True
        self.is_active = True
        return self

    def own(self) -> None:
        """Watches over the ranks and owns the output folder until the run ends."""
        self.watch = begin_watch(self.loop)
        self.undo.enter_context(owned(Path(self.trainer.args.output_dir), self.trainer.ranks))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        trainer, loop = self.trainer, self.loop
        self.is_ending, loop.is_waiting, trainer.bus.is_held = True, False, False
        lost = None if error is None else lost_rank(self.watch, error)
        broken, error = error, lost or error
        try:
            if error is not None:
                trainer.outcome = "failed"
                error.add_note(f"raised in phase {loop.phase.name}, after step {trainer.state.global_step}")
                reunite(loop, self.watch, error)
                rescue(loop, error)
                loop.journal.failed(loop.phase, trainer.state.global_step, error)
                self._tell_all("on_exception", error, error=error)
        finally:
            try:
                self._tell_all("on_teardown", error)
            finally:
                self._close()
        if lost is not None:
            raise lost from broken
        dead = None if error is None else dead_worker(error)
        if dead is not None:
            for note in getattr(error, "__notes__", ()):
                dead.add_note(note)
            raise dead from error

    def _close(self) -> None:
        self.is_active = False
        self.undo.callback(self.loop.close)
        if self.watch is not None:
            self.undo.callback(self.watch.close)
        self.undo.close()

    def _tell_all(self, hook: str, cause: BaseException | None, **context: Any) -> None:
        """Tells every plugin; where one fails at it, a run that failed before keeps its own error, with a note."""
        try:
            self.trainer.bus.tell_all(hook, trainer=self.trainer, **context)
        except Exception as error:
            if cause is None:
                raise
            cause.add_note(f"then {error!r} was {', '.join(error.__notes__)}")

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Turns the signals of `stop_signals` into requests to save and stop; a second one of them stops at once.

        A run that is at its end anyway ends in order.

        A handler that was not set from Python (faulthandler's) could not be put back and is left alone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = [signal.Signals[name] for name in self.trainer.args.stop_signals]
        before = {number: signal.signal(number, self._interrupted) for number in wanted if not _is_foreign(number)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """Serves a signal; a forked child has inherited this: SIGTERM ends it, and others it leaves to the run."""
        if os.getpid() != self.process:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        name, loop, before = signal.Signals(number).name, self.loop, self.signalled_at
        self.signalled_at = monotonic()
        if before >= 0 and (loop.ranks.world_size == 1 or self.signalled_at - before >= ONE_PRESS_SECONDS):
            raise KeyboardInterrupt(f"{name}: stopped at once")
        if before >= 0 or loop.is_interrupted or self.is_ending or loop.phase is Phase.STOP:
            return  # it is ending: as one press, because of another rank or a plugin, or by itself
        for wanted in (Signal.SAVE, Signal.STOP):
            loop.request(
                wanted, by=name, why="the operating system or the user asks to end", interrupt=True, local=True
            )
        if loop.is_waiting:
            raise Interrupted
