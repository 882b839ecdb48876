"""Dataloader workers and the signals that end a run: what all processes of a job get is the business of the main one.

The update at hand is finished and saved after a signal, for which workers are still needed. So they pass these signals
over, SIGTERM too, which torch and Python end a worker by: theirs are told from others by who sends them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Final

_CAN_WAIT: Final = hasattr(signal, "sigwaitinfo")
"""Whether a process can learn who sent it a signal: not on Windows and macOS, where SIGTERM ends a worker."""


@contextmanager
def _held() -> Iterator[None]:
    """Holds SIGTERM back; what is started meanwhile begins so."""
    if not _CAN_WAIT:
        yield
        return
    resource_tracker.ensure_running()  # its start, which torch's queues bring about, would unblock SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started(loader: Iterable[Any]) -> Iterator[Any]:
    """Gives the iterator of a loader whose workers, if it has any, begin with `leave_signals`."""
    with _held() if getattr(loader, "num_workers", 0) else nullcontext():
        return iter(loader)


def leave_signals(names: Sequence[str], worker: int) -> None:
    """Leaves the signals `names` to the main process; called in a worker.

    Args:
        names: of the signals.
        worker: its number, which torch passes.
    """
    wanted = {signal.Signals[name] for name in names}
    for number in wanted - {signal.SIGTERM}:
        signal.signal(number, _pass_over)
    if not _CAN_WAIT:
        return
    if signal.SIGTERM in wanted:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # where multiprocessing's own start unblocked it
        threading.Thread(target=_end_when_told, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Does nothing; what the worker starts gets the system's handler again, which it would not of SIG_IGN.

    SIGTERM is held back instead, and stays so in what the worker starts.
    """


def _end_when_told() -> None:
    """Ends this worker by the SIGTERM of its main process alone."""
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (os.getppid() if parent is None else parent.pid):
        pass
    os._exit(0)
