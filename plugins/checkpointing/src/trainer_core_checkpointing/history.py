"""The log history on disk: one file that is only ever appended to, shared by checkpoints through hard links.

`.history.jsonl` in `output_dir` holds one line of JSON for each logged row. A save appends the rows since the last
one and links the file into its checkpoint; the manifest holds size and SHA-256 of the part that counts there, so
that a save costs what is new and rows that come later change no checkpoint.

A run never appends to a file that an earlier one began: it continues with a new one, copied from the part that
counts, and checkpoints that are there keep theirs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from trainer_core import CheckpointError, InvalidCheckpointError
from trainer_core_checkpointing import files
from trainer_core_checkpointing.manifest import FileEntry
from trainer_core_checkpointing.tree import decode, encode
from trainer_core_checkpointing.untrusted import Seal, count_values, parse_json, read_bytes

NAME: Final = ".history.jsonl"
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""Answers of file systems that do not offer a link here."""
MAX_BYTES: Final = 2**30
"""A longer history is not read; it is that of some ten million rows."""
MAX_VALUES: Final = 2**25
"""Nor is one with more values."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows from the one with the index `first` up to that before `end`, as lines of JSON."""

    first: int
    end: int
    lines: bytes


class History:
    """The history of one run.

    Attributes:
        file: in `output_dir`.
        rows: how many are in it.
        size: bytes that count.
        digest: running SHA-256 of them.
    """

    def __init__(self, output_dir: Path) -> None:
        self.file = output_dir / NAME
        self.rows = 0
        self.size = 0
        self.digest = hashlib.sha256()
        self._is_begun = False

    @property
    def entry(self) -> FileEntry:
        """What a manifest says of the file as it is now."""
        return FileEntry(self.size, self.digest.hexdigest(), grows=True)

    def new_rows(self, log_history: Sequence[dict[str, Any]]) -> Rows:
        """Gives the rows that are not in the file, as text: all of them where it is to be begun anew."""
        goes_on = self._is_begun and self.rows <= len(log_history) and self._is_whole()
        first = self.rows if goes_on else 0
        return Rows(first, len(log_history), b"".join(_line(row) for row in log_history[first:]))

    def append(self, rows: Rows) -> None:
        """Puts `rows` into the file, durably.

        Raises:
            OSError: they could not be; what is there cannot be trusted, and the next rows begin a new file.
        """
        try:
            if rows.first == 0:
                self._begin()
            files.write_at(self.file, self.size, rows.lines)
        except OSError:
            self._is_begun = False
            raise
        self.digest.update(rows.lines)
        self.rows, self.size = rows.end, self.size + len(rows.lines)

    def link_to(self, target: Path) -> None:
        """Puts the file into a checkpoint, as a link or, where those are not offered, as a copy."""
        try:
            files.calls.link(self.file, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with self.file.open("rb") as file:
                files.write_file(target, iter(lambda: file.read(files.CHUNK), b""), self.size, in_parallel=False)

    def _is_whole(self) -> bool:
        return self.file.is_file() and self.file.stat().st_size >= self.size

    def _begin(self) -> None:
        """Puts a new, empty file in place of one that earlier checkpoints may share."""
        fresh = self.file.with_name(f"{NAME}.{os.getpid()}")
        if os.path.lexists(fresh):
            files.calls.unlink(fresh)
        files.write_file(fresh, (), 0, in_parallel=False)
        files.calls.replace(fresh, self.file)
        self.rows, self.size, self.digest = 0, 0, hashlib.sha256()
        self._is_begun = True


def read_rows(file: Path, seal: Seal) -> list[dict[str, Any]]:
    """Gives the rows in the part of a history that counts.

    Raises:
        InvalidCheckpointError: the file is damaged, or a line in it is no row.
    """
    content = read_bytes(file, seal, MAX_BYTES)
    if count_values(content) + content.count(b"\n") > MAX_VALUES:
        raise InvalidCheckpointError(file, f"holds more than {MAX_VALUES} values")
    try:
        return [_row(line, place, file) for place, line in enumerate(io.BytesIO(content), 1)]
    except MemoryError as error:
        raise InvalidCheckpointError(file, "needs more memory than there is") from error


def _row(line: bytes, place: int, file: Path) -> dict[str, Any]:
    try:
        row = decode(parse_json(line, file), {}, where=f"line {place}")
    except InvalidCheckpointError as error:
        raise InvalidCheckpointError(file, f"cannot be read, {error.file}: {error.what}") from error
    if not isinstance(row, dict) or not all(isinstance(name, str) for name in row):
        raise InvalidCheckpointError(file, f"holds something else than a row in line {place}")
    return row


def plain_row(row: Mapping[str, Any]) -> Any:
    """Gives a row as JSON can hold it."""
    return encode({str(name): _readable(item) for name, item in row.items()}, {})


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(plain_row(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _readable(item: object) -> object:
    """Gives `item`, or its text where it cannot be saved: a row is a record, nothing is computed from it."""
    tensors: dict[str, torch.Tensor] = {}
    try:
        encode(item, tensors)
    except CheckpointError:
        return str(item)
    return str(item) if tensors else item
