"""Seccomp user notification by ctypes: a process that asks before each call of a list, and the one that answers.

The process installs a filter (`install`), which needs no privilege; the kernel gives a descriptor, on which another
process is asked (`receive`) and answers (`answer`). It sees calls of all code: libc, libstdc++, Rust.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from trainer_core.testing.crash import calls

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 8
_SYSCALL_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE: Final = 1
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ARGUMENTS: Final = 16
_MAP_SHARED, _MAP_ANONYMOUS, _PROT_WRITE = 0x1, 0x20, 0x2


@dataclass(frozen=True, slots=True)
class Question:
    """A call that waits for an answer."""

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install() -> int:
    """Makes this thread, and all it starts, ask before each call of `calls.NAMES`, and gives the descriptor.

    Raises:
        OSError: the kernel does not allow it here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = _code()
    program = _Program(len(code) // 8, code)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs is refused")
    number = _SYSCALL_SECCOMP[os.uname().machine]
    listener = libc.syscall(number, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), f"seccomp is refused, {os.strerror(ctypes.get_errno())}")
    return int(listener)


def receive(listener: int) -> Question | None:
    """Gives the next call that waits; None where its process was killed meanwhile."""
    buffer = bytearray(80)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except (FileNotFoundError, InterruptedError):
        return None
    head = struct.unpack_from("=QIIiIQ", buffer)
    return Question(head[0], head[1], head[3], struct.unpack_from("=6Q", buffer, 32))


def answer(listener: int, question: Question, value: int = 0, errno: int = 0, *, goes_on: bool = False) -> None:
    """Answers a call: it goes on, or gives `value` or fails with `errno` without being made."""
    reply = bytearray(struct.pack("=QqiI", question.id, value, -errno, _CONTINUE if goes_on else 0))
    with suppress(FileNotFoundError):  # its process was killed meanwhile
        fcntl.ioctl(listener, _SEND, reply)


def _code() -> bytes:
    known = calls.here()
    assert known is not None
    architecture, numbers = known
    lines = [_line(_LOAD, 4), _line(_EQUAL, architecture, 1, 0), _line(_RETURN, _ALLOW), _line(_LOAD, 0)]
    for name, number in numbers.items():
        if name in calls.OPEN_FLAGS:
            lines += _if_flags(number, calls.OPEN_FLAGS[name])
        elif name == "mmap":
            lines += _if_shared(number)
        else:
            lines += [_line(_EQUAL, number, 0, 1), _line(_RETURN, _ASK)]
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _if_flags(number: int, argument: int) -> list[bytes]:
    """Asks where an open makes or empties a file."""
    return [
        _line(_EQUAL, number, 0, 4),
        _line(_LOAD, _ARGUMENTS + 8 * argument),
        _line(_ANY_BIT, calls.CHANGING_FLAGS, 0, 1),
        _line(_RETURN, _ASK),
        _line(_RETURN, _ALLOW),
    ]


def _if_shared(number: int) -> list[bytes]:
    """Asks where a file is mapped so that writes to memory reach it, which no later call would show."""
    return [
        _line(_EQUAL, number, 0, 7),
        _line(_LOAD, _ARGUMENTS + 8 * 2),
        _line(_ANY_BIT, _PROT_WRITE, 0, 4),
        _line(_LOAD, _ARGUMENTS + 8 * 3),
        _line(_ANY_BIT, _MAP_ANONYMOUS, 2, 0),
        _line(_ANY_BIT, _MAP_SHARED, 0, 1),
        _line(_RETURN, _ASK),
        _line(_RETURN, _ALLOW),
    ]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
