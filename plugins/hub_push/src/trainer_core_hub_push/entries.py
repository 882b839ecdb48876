"""An entry of an outbox: what is to become of it, its files, and how it is found again.

    00000003-6f0c…/       complete because it bears this name; entries are pushed in this order
      entry.json          where it goes, and what it replaces there
      files/…             what goes there
      tried               head of the repository before the last try to commit it

Whoever reads it may find it damaged, or written by somebody else: values of another type are refused, and a link, which
may lead to any file of the user's, is not followed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from trainer_core import PluginError, replace_file

FOLDER: Final = re.compile(r"([0-9]{8,12})-([0-9a-f]{32})")
"""Name of an entry's folder: its number and its id."""
FILES: Final = "files"
_BODY: Final = "entry.json"
_TRIED: Final = "tried"
_MOST_BYTES: Final = 1_000_000
"""Of a file that is read; an entry.json of ours has less than a thousandth of it."""
_DAMAGED: Final = "?"
"""What a note of a try that is damaged says; the head of no repository."""


@dataclass(frozen=True, slots=True)
class Push:
    """What is to become of an entry.

    Attributes:
        repo: `owner/name`, or `name` for whom the token belongs to.
        message: title of the commit.
        path: folder in the repository; empty for its root.
        key: a newer push of the same key to the same place replaces this one; empty for never.
        replaces: patterns of files in the repository that the commit deletes where the entry has none of that name.
        revision: branch; None for the main one.
        private: whether a repository that is made is private; None for its owner's default.
        step: updates that were done.
    """

    repo: str
    message: str
    path: str = ""
    key: str = ""
    replaces: tuple[str, ...] = ()
    revision: str | None = None
    private: bool | None = None
    step: int = 0

    @property
    def target(self) -> tuple[str, str | None, str]:
        """What a newer push must have in common with this one to replace it."""
        return self.repo, self.revision, self.key


_PUSH: Final = TypeAdapter(Push)


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete entry of an outbox.

    Attributes:
        id: marks its commit.
        folder: where it lies.
        push: what is to become of it.
    """

    id: str
    folder: Path
    push: Push

    def files(self) -> dict[str, Path]:
        """Gives the files, by path in the repository.

        Raises:
            PluginError: there is none, which would only delete there, or one is a link.
        """
        root = self.folder / FILES
        found = {self._in_repository(name): root / name for name in files_in(root)}
        if not found:
            raise PluginError(f"{root}: has lost its files. Delete {self.folder}.")
        if links := [path for path in (root, *found.values()) if path.is_symlink()]:
            raise PluginError(f"{links[0]}: is a link, and no push of trainer_core holds one. Delete {self.folder}.")
        return found

    def _in_repository(self, name: str) -> str:
        return f"{self.push.path}/{name}" if self.push.path else name

    @property
    def num_bytes(self) -> int:
        """Bytes of its files; fewer while it is being taken out."""
        total = 0
        for name in files_in(self.folder / FILES):
            with suppress(FileNotFoundError):
                total += (self.folder / FILES / name).stat().st_size
        return total

    @property
    def tried_on(self) -> str | None:
        """Head of the repository before the last try to commit it; None when there was none."""
        try:
            return _read(self.folder / _TRIED).decode("ascii", errors="replace")
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return _DAMAGED

    def note_try(self, head: str) -> None:
        """Remembers that a commit on `head` is about to be tried."""
        replace_file(self.folder / _TRIED, head.encode("ascii"))


def new_id() -> str:
    """Gives the id of an entry that is to be made."""
    return uuid4().hex


def write_body(folder: Path, entry_id: str, push: Push) -> None:
    """Writes down what is to become of an entry, with the time of day for a reader."""
    body = {"id": entry_id, "created_at": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(push)}
    replace_file(folder / _BODY, json.dumps(body, indent=2).encode("ascii"))


def read_entry(folder: Path) -> Entry:
    """Gives the entry of a folder that bears the name of one.

    Raises:
        FileNotFoundError: it is just being taken out.
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    if folder.is_symlink():
        raise ValueError("it is a link")
    try:
        push = _PUSH.validate_json(_read(folder / _BODY))
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc'])) or _BODY}: {one['msg']}" for one in error.errors())
        raise ValueError("; ".join(problems)) from None
    return Entry(folder.name.partition("-")[2], folder, push)


def _read(path: Path) -> bytes:
    """Gives the content of a file; follows no link, and waits for no pipe.

    Raises:
        OSError: it is a link, or cannot be read.
        ValueError: it is no file, or too long.
    """
    how = os.O_NOFOLLOW | os.O_NONBLOCK
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | how)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path.name} is no regular file")
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path.name} is longer than {_MOST_BYTES} bytes")
    return content


def files_in(folder: Path) -> list[str]:
    """Gives the files below a folder, by path in it with `/`, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
