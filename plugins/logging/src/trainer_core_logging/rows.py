"""The file of logged rows: JSON lines that are appended and never written again.

Each row is one `write` to the operating system (1 us; with its encoding 4 us), so a killed process loses none. A file
is cut in two cases only, when it is opened: a line that was left half (the disk was full, the machine went down) goes,
and so do, when a run is resumed, the rows after the checkpoint, because their updates are done again; all of them
where nothing was saved yet.

The lines are strict JSON. It has no word for numbers that are not finite: they are the strings "NaN", "Infinity" and
"-Infinity", as in the JSON of protocol buffers, so that a log still says how a run diverged. Python's `float` reads
them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

from trainer_core import SettingsError

logger = logging.getLogger("trainer_core.logging")

TAIL_BYTES: Final = 4096
"""So many bytes before the end tell whether a file is the one that a checkpoint knew."""

_encode: Final = json.JSONEncoder(allow_nan=False, separators=(", ", ": "), default=str).encode


class RowFile:
    """One file of rows, open during a run."""

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self._known: dict[str, int] | None = None
        self._resumes = False

    @property
    def is_open(self) -> bool:
        """Whether rows are written now."""
        return self._file is not None

    def open(
        self, path: Path, history: Sequence[Mapping[str, Any]] = (), step: int = 0, *, begins_again: bool = False
    ) -> None:
        """Opens the file to append to it.

        Args:
            path: of the file.
            history: rows before this run, which a new file gets when the run is resumed.
            step: of the checkpoint that was loaded, for messages.
            begins_again: the run was to be resumed and nothing was saved, so that all its updates are done again.

        Raises:
            SettingsError: the file cannot be opened.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(path)
            if self._resumes:
                self._continue(path, history, step)
            elif begins_again:
                self._set_aside(path, 0, "of a run that had saved nothing")
        except OSError as error:
            where = str(error.filename or path)
            raise SettingsError(
                [f"logging.file: cannot be opened ({error.strerror}), got {where!r}. Name another one, or None."]
            ) from error
        self._known, self._resumes = None, False

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row to the open file. A disk that fails is told once; the run goes on without rows."""
        assert self._file is not None
        try:
            _append(self._file, [row])
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Makes the rows of the open file durable. A disk that fails is told, and the run goes on without rows."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Closes the file; where it ended stays known."""
        if self._file is not None:
            self._known = _ending(self._file)
            self._file.close()
            self._file = None

    def forget(self) -> None:
        """Closes the file and begins afresh."""
        self.close()
        self._known, self._resumes = None, False

    def state_dict(self) -> dict[str, int | None]:
        """Gives where the file ends, and makes everything before it durable."""
        self.flush()  # a checkpoint is durable; it must not speak of bytes that are not
        known = self._known if self._file is None else _ending(self._file)
        return {"offset": None, "tail_crc32": None} if known is None else {**known}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Takes over where the file ended; rows after it are moved aside when it is opened."""
        offset, tail = state["offset"], state["tail_crc32"]
        self._known = None if offset is None or tail is None else {"offset": offset, "tail_crc32": tail}
        self._resumes = self._known is not None

    def _give_up(self, error: OSError) -> None:
        assert self._file is not None
        logger.error("%s: cannot be written (%s). Rows are no longer written.", self._file.name, error.strerror)
        self.close()

    def _continue(self, path: Path, history: Sequence[Mapping[str, Any]], step: int) -> None:
        assert self._file is not None
        assert self._known is not None
        offset, size = self._known["offset"], _size(self._file)
        if size == 0:
            _append(self._file, history)
        elif size < offset or _ending(self._file, offset) != self._known:
            logger.warning(
                "%s: is not the file that the checkpoint knew, rows after step %d may stand in it twice.", path, step
            )
        else:
            self._set_aside(path, offset, f"after the checkpoint of step {step}")

    def _set_aside(self, path: Path, offset: int, which: str) -> None:
        assert self._file is not None
        size = _size(self._file)
        if size > offset:
            again = os.pread(self._file.fileno(), size - offset, offset)
            aside = path.with_name(f"{path.stem}-cut{path.suffix}")
            with _opened(aside) as file:
                _write(file, again)
            os.ftruncate(self._file.fileno(), offset)
            told = "%s: %d rows %s are moved to %s; what they tell of is done again."
            logger.info(told, path, again.count(b"\n"), which, aside.name)


def _opened(path: Path) -> FileIO:
    """Opens a file of rows; a link is refused, which may lead out of the folder, and so is what has no end."""
    file = FileIO(path, "ab+", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        file.seek(0, os.SEEK_END)
        _cut_half_a_line(file)
    except OSError:
        file.close()
        raise
    return file


def _append(file: FileIO, rows: Iterable[Mapping[str, Any]]) -> None:
    _write(file, b"".join(_line(row) for row in rows))


def _write(file: FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]  # a disk that is nearly full takes a part; the rest raises


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return f"{_encode(row)}\n".encode()
    except (ValueError, TypeError):  # a number that is not finite, or a key that is no text
        return f"{_encode(_strict(row))}\n".encode()


def _strict(value: Any) -> Any:
    """Gives `value` with the numbers that JSON lacks as strings."""
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _ending(file: FileIO, offset: int | None = None) -> dict[str, int]:
    """Gives where a file ends, or would end, and what stands before it."""
    offset = _size(file) if offset is None else offset
    start = max(0, offset - TAIL_BYTES)
    return {"offset": offset, "tail_crc32": zlib.crc32(os.pread(file.fileno(), offset - start, start))}


def _cut_half_a_line(file: FileIO) -> None:
    end = size = _size(file)
    while end:
        start = max(0, end - TAIL_BYTES)
        newline = os.pread(file.fileno(), end - start, start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    if end < size:
        os.ftruncate(file.fileno(), end)
