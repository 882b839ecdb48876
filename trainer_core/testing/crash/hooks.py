"""Where the kernel lets nobody watch a process: it watches itself, through Python's audit events and `os.fsync`.

It sees the calls of Python that make, rename, link, remove or flush something; not writes, and nothing that compiled
code does by itself. Kills and failures come at these calls; what a disk would keep cannot be followed this way.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from trainer_core.testing.crash.calls import CHANGING_FLAGS, Call
from trainer_core.testing.crash.supervisor import Account, Plan, fails_too

_PATHS_OF: Final = {
    "os.mkdir": ("mkdir", 1),
    "os.rmdir": ("rmdir", 1),
    "os.remove": ("unlink", 1),
    "os.truncate": ("truncate", 1),
    "os.rename": ("rename", 2),
    "os.link": ("link", 2),
}
_MARK: Final = "call "


class _Watch:
    def __init__(self, folder: Path, plan: Plan, announce: Callable[[str], None]) -> None:
        self.folder = os.path.realpath(folder)
        self.plan = plan
        self.announce = announce
        self.number = 0

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes) and (arguments[2] or 0) & CHANGING_FLAGS:
            self.meet("open", arguments[:1])
        elif event in _PATHS_OF:
            name, number = _PATHS_OF[event]
            self.meet(name, arguments[:number])

    def meet(self, name: str, places: tuple[Any, ...]) -> None:
        paths = tuple(os.path.relpath(_path(place), self.folder) for place in places)
        if all(path.startswith("..") for path in paths):
            return
        call, number, plan = Call(name, paths), self.number, self.plan
        self.number += 1
        self.announce(f"{_MARK}{name} {' -> '.join(paths)}")
        is_meant = number == plan.at or (number > plan.at >= 0 and plan.lasts and fails_too(call, plan.errno))
        if is_meant and plan.action.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_meant and plan.action == "fail":
            raise OSError(plan.errno, os.strerror(plan.errno), paths[-1])


def _path(place: Any) -> str:
    text = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else os.fsdecode(place)
    return os.path.abspath(text)


def install(folder: Path, plan: Plan, announce: Callable[[str], None]) -> None:
    """Makes this process watch itself, for as long as it lives."""
    watch, fsync = _Watch(folder, plan, announce), os.fsync

    def flush(descriptor: Any) -> None:
        watch.meet("fsync", (descriptor if isinstance(descriptor, int) else descriptor.fileno(),))
        if plan.flushes:
            fsync(descriptor)

    os.fsync = flush  # type: ignore[assignment] # called with a descriptor or a file, as before
    sys.addaudithook(watch.hear)


def complete(account: Account, plan: Plan, told: bytes) -> None:
    """Puts the calls that a process told of itself into its account, and the one at which it acted on its plan."""
    for line in told.decode().splitlines():
        if line.startswith(_MARK):
            name, _, paths = line.removeprefix(_MARK).partition(" ")
            account.calls.append(Call(name, tuple(paths.split(" -> "))))
        else:
            account.calls.append(Call("announce", data=line.encode() + b"\n"))
    calls = [call for call in account.calls if call.name != "announce"]
    if plan.action != "nothing" and 0 <= plan.at < len(calls):
        account.acted = calls[plan.at]
