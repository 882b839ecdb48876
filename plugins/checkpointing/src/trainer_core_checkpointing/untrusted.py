"""Files that somebody else may have written: regular ones, read once, and checked while they are read.

A link, pipe, device or socket is refused and not waited for. Where it is known what the bytes must be (a `Seal`), they
are hashed as they come, and nothing of them is given away before the last one was: what is checked is what is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, Protocol

from trainer_core import InvalidCheckpointError

MAX_JSON_BYTES: Final = 64 * 2**20
"""A larger JSON file is refused before it is read."""
MAX_JSON_VALUES: Final = 2**22
"""JSON with more values is refused before it is parsed: a value takes up to 100 bytes of memory."""
NO_MEMORY: Final = "needs more memory than there is"
CHUNK: Final = 2**20
"""Bytes that are read and hashed at once; they stay in the processor's cache in between."""

_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class Seal(Protocol):
    """What a file must be."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def sha256(self) -> str:
        """Of these bytes, in hex."""

    @property
    def grows(self) -> bool:
        """Whether the file may be longer; what is beyond `size` does not count and is not read."""


class Content:
    """The bytes of one open file, from first to last, hashed as they are read.

    Attributes:
        file: which.
        size: bytes that count.
        left: of them, how many are not read yet.
    """

    def __init__(self, file: Path, raw: BinaryIO, size: int, *, is_hashed: bool) -> None:
        self.file = file
        self.size = self.left = size
        self._raw = raw
        self._digest = hashlib.sha256() if is_hashed else None

    def read(self, number: int) -> bytes:
        """Gives the next `number` bytes; the caller has compared that with `left`, and with what it can hold."""
        buffer = bytearray(number)
        self.read_into(memoryview(buffer))
        return bytes(buffer)

    def read_into(self, target: memoryview) -> None:
        """Fills `target`, of bytes, with the next ones."""
        place = 0
        while place < len(target):
            number = self._raw.readinto(target[place : place + CHUNK])  # type: ignore[attr-defined] # a raw file has it
            if not number:
                raise InvalidCheckpointError(self.file, f"is cut short, it has {self.size - self.left + place} bytes")
            if self._digest is not None:
                self._digest.update(target[place : place + number])
            place += number
        self.left -= place

    def check(self, seal: Seal | None) -> None:
        """Reads the rest, and compares all bytes with `seal`; without one does nothing."""
        if seal is None or self._digest is None:
            return
        rest = bytearray(min(self.left, CHUNK))
        while self.left:
            self.read_into(memoryview(rest)[: self.left])
        if self._digest.hexdigest() != seal.sha256:
            raise InvalidCheckpointError(self.file, "is damaged, its checksum does not fit")


@contextmanager
def opened(file: Path, seal: Seal | None = None) -> Iterator[Content]:
    """Opens a file for one reading; that it is damaged is raised at the end, before anything else that was found.

    Raises:
        InvalidCheckpointError: it is missing, no regular file, cannot be read, or is not what `seal` says.
    """
    try:
        with _regular(file) as raw:
            size = os.fstat(raw.fileno()).st_size
            if seal is not None:
                _compare_size(file, size, seal)
            content = Content(file, raw, size if seal is None else seal.size, is_hashed=seal is not None)
            try:
                yield content
            except Exception:
                content.check(seal)  # that it is damaged explains what was found in it
                raise
            content.check(seal)
    except OSError as error:
        raise InvalidCheckpointError(file, f"cannot be read, {error.strerror or error}") from error
    except MemoryError as error:
        raise InvalidCheckpointError(file, NO_MEMORY) from error


def check_size(file: Path, seal: Seal) -> None:
    """Compares the size of a file, which is not opened.

    Raises:
        InvalidCheckpointError: it is not what `seal` says.
    """
    try:
        _compare_size(file, os.stat(file, follow_symlinks=False).st_size, seal)
    except (OSError, ValueError) as error:
        raise InvalidCheckpointError(file, f"cannot be read, {error}") from error


def _compare_size(file: Path, size: int, seal: Seal) -> None:
    if size < seal.size or (size > seal.size and not seal.grows):
        raise InvalidCheckpointError(file, f"is damaged, it has {size} bytes instead of {seal.size}")


def check_seal(file: Path, seal: Seal) -> None:
    """Reads a file to its end, a chunk at a time.

    Raises:
        InvalidCheckpointError: it is not what `seal` says.
    """
    with opened(file, seal):
        pass


def check_memory(file: Path, size: int) -> None:
    """Refuses a file that no memory of this machine can hold, before it is tried; a sparse one takes no disk.

    Raises:
        InvalidCheckpointError: it is larger.
    """
    if hasattr(os, "sysconf") and size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise InvalidCheckpointError(file, f"needs more memory than the machine has, {size} bytes")


def read_bytes(file: Path, seal: Seal | None = None, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Gives what is in a file, or in the part of it that counts.

    Raises:
        InvalidCheckpointError: it is missing, damaged or too large.
    """
    with opened(file, seal) as content:
        if content.size > max_bytes:
            raise InvalidCheckpointError(file, f"is too large, {content.size} bytes, over {max_bytes}")
        return content.read(content.size)


def read_json(
    file: Path, seal: Seal | None = None, max_bytes: int = MAX_JSON_BYTES, max_values: int = MAX_JSON_VALUES
) -> Any:
    """Gives the value in a JSON file of the standard: without NaN, and with each key of an object once.

    Raises:
        InvalidCheckpointError: it is missing, damaged, too large, too deep or no JSON.
    """
    return parse_json(read_bytes(file, seal, max_bytes), file, max_values)


def parse_json(text: bytes, file: Path, max_values: int = MAX_JSON_VALUES) -> Any:
    """Gives the value of `text`, which stands in `file`; as `read_json`."""
    if count_values(text) > max_values:
        raise InvalidCheckpointError(file, f"holds more than {max_values} values")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refused, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpointError(file, f"cannot be read as JSON, {error}") from error
    except MemoryError as error:
        raise InvalidCheckpointError(file, NO_MEMORY) from error


def count_values(text: bytes) -> int:
    """Gives a number that the values in a text of JSON do not exceed, without parsing it."""
    return 1 + sum(text.count(sign) for sign in (b",", b"[", b"{"))  # each value but one follows one of these


@contextmanager
def _regular(file: Path) -> Iterator[BinaryIO]:
    try:
        descriptor = os.open(file, _FLAGS)
    except FileNotFoundError:
        raise InvalidCheckpointError(file, "is missing") from None
    except ValueError as error:  # a NUL in the name
        raise InvalidCheckpointError(file, f"is no name of a file, {error}") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _irregular(file) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(file)
    with os.fdopen(descriptor, "rb", buffering=0) as raw:
        yield raw


def _irregular(file: Path) -> InvalidCheckpointError:
    return InvalidCheckpointError(file, "is no regular file", "Remove it, or use another checkpoint.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number
