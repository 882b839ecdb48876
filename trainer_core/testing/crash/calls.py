"""The system calls that change a disk: their numbers, and what their arguments mean."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

WRITES: Final = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range")
"""Calls that put bytes into a file."""
SPLITTABLE: Final = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
"""Those of them whose bytes are in the caller's memory."""
FLUSHES: Final = ("fsync", "fdatasync")
MAKES: Final = ("open", "creat", "openat", "openat2")
"""Calls that may make or empty a file; they are seen where their flags say so."""
RENAMES: Final = ("rename", "renameat", "renameat2")
LINKS: Final = ("link", "linkat")
SYMLINKS: Final = ("symlink", "symlinkat")
UNLINKS: Final = ("unlink", "unlinkat")
CUTS: Final = ("truncate", "ftruncate", "fallocate")
OTHERS: Final = ("mkdir", "mkdirat", "rmdir", "mmap")
NAMES: Final = (*WRITES, *FLUSHES, *MAKES, *RENAMES, *LINKS, *SYMLINKS, *UNLINKS, *CUTS, *OTHERS)

_X86_64: Final[Mapping[str, int]] = {
    "write": 1,
    "open": 2,
    "mmap": 9,
    "pwrite64": 18,
    "writev": 20,
    "sendfile": 40,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "openat": 257,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "fallocate": 285,
    "pwritev": 296,
    "renameat2": 316,
    "copy_file_range": 326,
    "pwritev2": 328,
    "openat2": 437,
}
_AARCH64: Final[Mapping[str, int]] = {
    "mkdirat": 34,
    "unlinkat": 35,
    "symlinkat": 36,
    "linkat": 37,
    "renameat": 38,
    "truncate": 45,
    "ftruncate": 46,
    "fallocate": 47,
    "openat": 56,
    "write": 64,
    "writev": 66,
    "pwrite64": 68,
    "pwritev": 70,
    "sendfile": 71,
    "fsync": 82,
    "fdatasync": 83,
    "mmap": 222,
    "renameat2": 276,
    "copy_file_range": 285,
    "pwritev2": 287,
    "openat2": 437,
}
ARCHITECTURES: Final[Mapping[str, tuple[int, Mapping[str, int]]]] = {
    "x86_64": (0xC000003E, _X86_64),
    "aarch64": (0xC00000B7, _AARCH64),
}
"""Machine -> the kernel's number of it, and the numbers of its calls."""

OPEN_FLAGS: Final[Mapping[str, int]] = {"open": 1, "openat": 2}
"""Call -> the argument that holds its flags; of the others the flags are not in a register, or always make a file."""
CHANGING_FLAGS: Final = os.O_CREAT | os.O_TRUNC

_AT: Final = frozenset({"openat", "openat2", "mkdirat", "unlinkat", "renameat", "renameat2", "linkat"})
_TWO_PATHS: Final = frozenset({*RENAMES, *LINKS})
_FILES: Final[Mapping[str, int]] = {"copy_file_range": 2, "mmap": 4}
_OF_PATHS: Final = frozenset({*MAKES, *RENAMES, *LINKS, *SYMLINKS, *UNLINKS, "truncate", "mkdir", "mkdirat", "rmdir"})
AT_REMOVEDIR: Final = 0x200


@dataclass(frozen=True, slots=True)
class Call:
    """A call that concerns the watched folder, as it was asked for.

    Attributes:
        name: of the call; "announce" for what the watched process told in between.
        paths: relative to the folder; one, or two for a rename or a link.
        data: bytes that it writes; None where nobody asked to record them.
        size: of these bytes, or the length that a file is cut to.
        offset: where in the file; None for its end.
        flags: of an open, a rename, an unlink.
    """

    name: str
    paths: tuple[str, ...] = ()
    data: bytes | None = None
    size: int = 0
    offset: int | None = None
    flags: int = 0

    def __str__(self) -> str:
        size = f" {self.size} bytes" if self.name in (*WRITES, *CUTS) else ""
        return f"{self.name} {' -> '.join(self.paths)}{size}"

    @property
    def can_split(self) -> bool:
        """Whether a part of it can be done."""
        return self.name in SPLITTABLE and self.size > 1

    def without_data(self) -> Call:
        """Gives the call without its bytes."""
        return replace(self, data=None)


def here() -> tuple[int, Mapping[str, int]] | None:
    """Gives the kernel's number of this machine and the numbers of its calls; None where they are not known."""
    return ARCHITECTURES.get(platform.machine())


def path_arguments(name: str) -> tuple[tuple[int | None, int], ...]:
    """Gives where the paths of a call stand among its arguments, each as (descriptor of the folder or None, text)."""
    if name not in _OF_PATHS:
        return ()
    if name == "symlink":
        return ((None, 1),)
    if name == "symlinkat":
        return ((1, 2),)
    if name in _AT:
        return ((0, 1), (2, 3)) if name in _TWO_PATHS else ((0, 1),)
    return ((None, 0), (None, 1)) if name in _TWO_PATHS else ((None, 0),)


def file_argument(name: str) -> int | None:
    """Gives which argument is the descriptor that a call changes; None where it has paths."""
    if name in _OF_PATHS:
        return None
    return _FILES.get(name, 0)
