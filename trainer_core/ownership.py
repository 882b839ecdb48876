"""One run at a time in an output folder.

The main rank holds an advisory lock on `.owner.json` for as long as `train()` runs. The operating system gives it back
when the process ends, in whatever way, so a run that was killed owns nothing; the file says who holds it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core.errors import OwnershipError, SettingsError, TrainerCoreError
from trainer_core.files import make_folder, open_here

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment] # asked for before it is used

if TYPE_CHECKING:
    from trainer_core.ranks import Ranks

logger = logging.getLogger("trainer_core.ownership")

NAME: Final = ".owner.json"
HANDOVER_SECONDS: Final = 2.0
"""How long a run waits for one that is just ending, as a restarted job does for the one that was killed."""


_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
"""NFS without a lock daemon, Lustre mounted without flock."""

_held: Final[set[int]] = set()


def _let_go() -> None:
    """Closes what a forked child inherited: a worker that outlives its killed run must not own the folder."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def owned(output_dir: Path, ranks: Ranks | None = None) -> Iterator[None]:
    """Owns `output_dir` for the time of the context; on all ranks together, or, without `ranks`, for this process.

    Raises:
        OwnershipError: another run owns it; on every rank.
        SettingsError: it cannot be written to; on every rank.
    """
    taken = _take(output_dir) if ranks is None or ranks.is_main else None
    refusal = taken if isinstance(taken, TrainerCoreError) else None
    if ranks is not None:
        refusal = ranks.from_main(refusal)
    if refusal is not None:
        raise refusal
    if isinstance(taken, int):
        _held.add(taken)
    try:
        yield
    finally:
        if isinstance(taken, int) and taken in _held:
            _held.remove(taken)
            os.close(taken)


def _take(output_dir: Path) -> int | TrainerCoreError:
    """Gives the descriptor that holds the lock, or why there is none."""
    try:
        make_folder(output_dir)
        descriptor = open_here(output_dir / NAME, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        return _unwritable(output_dir, error)
    try:
        is_ours = _locked(descriptor)
    except OSError as error:
        os.close(descriptor)
        return _unwritable(output_dir, error)
    if not is_ours:
        os.close(descriptor)
        problem = f"another run owns it, got {str(output_dir)!r} ({_owner(output_dir / NAME)})"
        return OwnershipError(f"output_dir: {problem}. Wait for it, or use another folder.")
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
    except OSError as error:
        os.close(descriptor)
        return _unwritable(output_dir, error)
    return descriptor


def _unwritable(output_dir: Path, error: OSError) -> SettingsError:
    problem = f"cannot be written to, got {str(output_dir)!r} ({error})"
    return SettingsError([f"output_dir: {problem}. Name a folder that is there or can be made."])


def _locked(descriptor: int) -> bool:
    if fcntl is None:
        return True
    deadline = time.monotonic() + HANDOVER_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            told = "output_dir: its file system has no locks, %s. See to it that no other run uses it."
            logger.warning(told, error)
            return True
        else:
            return True


def _owner(path: Path) -> str:
    """Says who owns a folder, as far as its file tells."""
    try:
        told: Any = json.loads(path.read_bytes()[:4096])
        return f"process {told['pid']} on {told['host']} since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say who it is"
