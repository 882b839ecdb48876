"""The log history on disk: one file that is only ever appended to, shared by checkpoints through hard links.

`.history.jsonl` in `output_dir` holds one line of JSON for each logged row. A save appends the rows since the last
one and links the file into its checkpoint; the manifest holds size and SHA-256 of the part that counts there, so
that a save costs what is new and rows that come later change no checkpoint.

A run never appends to a file that an earlier one began: it continues with a new one, copied from the part that
counts, and checkpoints that are there keep theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from trainer_core import CheckpointError
from trainer_core_checkpointing.tree import decode, encode

NAME: Final = ".history.jsonl"


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

    def extend_to(self, log_history: Sequence[dict[str, Any]]) -> None:
        """Appends the rows of `log_history` that are not in the file, and flushes it to the disk."""
        if not self._is_begun or self.rows > len(log_history) or not self._is_whole():
            self._begin()
        lines = b"".join(_line(row) for row in log_history[self.rows :])
        with self.file.open("r+b") as file:
            file.truncate(self.size)  # a write that failed may have left a part; no checkpoint counts it
            file.seek(self.size)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.digest.update(lines)
        self.rows, self.size = len(log_history), self.size + len(lines)

    def link_to(self, target: Path) -> None:
        """Puts the file into a checkpoint, as a link or, where those are not offered, as a copy."""
        try:
            os.link(self.file, target)
        except OSError:
            shutil.copyfile(self.file, target)

    def _is_whole(self) -> bool:
        return self.file.is_file() and self.file.stat().st_size >= self.size

    def _begin(self) -> None:
        """Puts a new, empty file in place of one that earlier checkpoints may share."""
        fresh = self.file.with_name(f"{NAME}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.touch()
        fresh.replace(self.file)
        self.rows, self.size, self.digest = 0, 0, hashlib.sha256()
        self._is_begun = True


def read_rows(file: Path, size: int) -> list[dict[str, Any]]:
    """Gives the rows in the first `size` bytes of a history.

    Raises:
        CheckpointError: the file is shorter, or a line in it is no row.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(size)
        if len(content) < size:
            raise ValueError(f"it has {len(content)} of {size} bytes")
        return [decode(json.loads(line), {}, where=file.name) for line in content.splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read, {error}. Use another checkpoint.") from error


def _line(row: dict[str, Any]) -> bytes:
    value = encode({str(name): _readable(item) for name, item in row.items()}, {})
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _readable(item: object) -> object:
    """Gives `item`, or its text where it cannot be saved: a row is a record, nothing is computed from it."""
    tensors: dict[str, torch.Tensor] = {}
    try:
        encode(item, tensors)
    except CheckpointError:
        return str(item)
    return str(item) if tensors else item
