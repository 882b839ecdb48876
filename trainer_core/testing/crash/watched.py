"""What can be seen and done of a process whose call waits: its memory, its descriptors, half of its write."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from trainer_core.testing.crash import calls
from trainer_core.testing.crash.calls import Call
from trainer_core.testing.crash.seccomp import Question

_AT_FDCWD: Final = -100
_SYSCALL_PIDFD_GETFD: Final = 438
_APPEND: Final = os.O_APPEND
ANNOUNCEMENTS: Final = "announcements"
"""Name of the file in memory into which a watched process tells what it has done."""


class Watched:
    """A process that is watched, and the folder that it is watched for.

    Args:
        pid: of the process.
        folder: calls that concern it are told.
        records: tell the bytes of writes too.
    """

    def __init__(self, pid: int, folder: Path, *, records: bool) -> None:
        self.pid = pid
        self.folder = os.path.realpath(folder)
        self.records = records
        self.pidfd = os.pidfd_open(pid)
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        known = calls.here()
        assert known is not None
        self._names = {number: name for name, number in known[1].items()}

    def close(self) -> None:
        """Closes its descriptors."""
        os.close(self.pidfd)
        os.close(self._memory)

    def call(self, question: Question) -> Call | None:
        """Gives the call that waits; None where it does not concern the folder."""
        name = self._names[question.number]
        places = calls.path_arguments(name)
        if places:
            return self._of_paths(name, question, places)
        return self._of_file(name, question)

    def write_half(self, question: Question) -> int:
        """Makes the first half of the bytes of a waiting write reach the file, and gives how many they are."""
        name = self._names[question.number]
        descriptor = self._duplicate(_signed(question.arguments[0]))
        try:
            data = self._bytes(name, question)
            half = data[: len(data) // 2]
            if name in ("pwrite64", "pwritev", "pwritev2"):
                return os.pwrite(descriptor, half, question.arguments[3])
            return os.write(descriptor, half)
        finally:
            os.close(descriptor)

    def _of_paths(self, name: str, question: Question, places: tuple[tuple[int | None, int], ...]) -> Call | None:
        arguments = question.arguments
        paths = tuple(
            self._path(_AT_FDCWD if at is None else _signed(arguments[at]), arguments[text]) for at, text in places
        )
        inside = tuple(self._inside(path) for path in paths)
        if inside == (None,) * len(inside):
            return None
        flags = {"open": 1, "openat": 2, "renameat2": 4, "unlinkat": 2}.get(name)
        size = arguments[1] if name == "truncate" else 0
        told = tuple(path if path is not None else paths[place] for place, path in enumerate(inside))
        return Call(name, told, size=size, flags=0 if flags is None else arguments[flags])

    def _of_file(self, name: str, question: Question) -> Call | None:
        place = calls.file_argument(name)
        assert place is not None
        descriptor = _signed(question.arguments[place])
        if descriptor < 0:
            return None
        try:
            target = os.readlink(f"/proc/{self.pid}/fd/{descriptor}")
        except FileNotFoundError:
            return None  # a bad descriptor: the kernel refuses the call
        if target.startswith(f"/memfd:{ANNOUNCEMENTS}"):
            return Call("announce", data=self._bytes(name, question))
        path = self._inside(target)
        if path is None:
            return None
        if name not in calls.WRITES:
            return Call(name, (path,), size=question.arguments[1] if name == "ftruncate" else 0)
        return self._write(name, question, path, descriptor)

    def _write(self, name: str, question: Question, path: str, descriptor: int) -> Call:
        size = self._size(name, question)
        data = self._bytes(name, question) if self.records and name in calls.SPLITTABLE else None
        return Call(name, (path,), data, size, self._offset(name, question, descriptor))

    def _offset(self, name: str, question: Question, descriptor: int) -> int | None:
        if name in ("pwrite64", "pwritev", "pwritev2"):
            return question.arguments[3]
        text = Path(f"/proc/{self.pid}/fdinfo/{descriptor}").read_text()
        told = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        return None if int(told["flags"], 8) & _APPEND else int(told["pos"])

    def _size(self, name: str, question: Question) -> int:
        if name in ("writev", "pwritev", "pwritev2"):
            return sum(size for _, size in self._parts(question))
        return question.arguments[{"sendfile": 3, "copy_file_range": 4}.get(name, 2)]

    def _bytes(self, name: str, question: Question) -> bytes:
        if name in ("writev", "pwritev", "pwritev2"):
            return b"".join(os.pread(self._memory, size, place) for place, size in self._parts(question) if size)
        return os.pread(self._memory, question.arguments[2], question.arguments[1])

    def _parts(self, question: Question) -> list[tuple[int, int]]:
        content = os.pread(self._memory, 16 * question.arguments[2], question.arguments[1])
        return [(place, size) for place, size in struct.iter_unpack("=QQ", content)]

    def _path(self, descriptor: int, place: int) -> str:
        base = "" if (text := self._text(place)).startswith("/") else os.readlink(self._folder_of(descriptor))
        return os.path.normpath(os.path.join(base, text))

    def _folder_of(self, descriptor: int) -> str:
        return f"/proc/{self.pid}/cwd" if descriptor == _AT_FDCWD else f"/proc/{self.pid}/fd/{descriptor}"

    def _text(self, place: int) -> str:
        text = b""
        while b"\0" not in text:  # up to the end of a page: what lies behind it may not be mapped
            text += os.pread(self._memory, 4096 - (place + len(text)) % 4096, place + len(text))
        return os.fsdecode(text[: text.index(b"\0")])

    def _inside(self, path: str) -> str | None:
        if path == self.folder:
            return "."
        if path == os.path.dirname(self.folder):
            return ".."
        head = f"{self.folder}/"
        return path[len(head) :] if path.startswith(head) else None

    def _duplicate(self, descriptor: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        copy = libc.syscall(_SYSCALL_PIDFD_GETFD, self.pidfd, descriptor, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), f"pidfd_getfd is refused, {os.strerror(ctypes.get_errno())}")
        return int(copy)


def _signed(value: int) -> int:
    return ctypes.c_int(value & 0xFFFFFFFF).value
