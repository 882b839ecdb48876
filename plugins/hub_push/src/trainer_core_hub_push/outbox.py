"""The outbox of a run: what is still to be pushed, whole, whatever becomes of the run and of its checkpoints.

    output_dir/.outbox/
      lock                        held by the process that uploads, with its number
      00000003-6f0c…/             an entry, see `entries`
      .staging-…                  an entry that is being queued
      .done-…                     one that is being deleted

Weights are hard links, as nobody writes into those of a checkpoint; all else is copied, for files such as a log that
checkpoints share go on growing. Where links are not offered everything is copied.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from trainer_core import PluginError
from trainer_core_hub_push.entries import FILES, FOLDER, Entry, Push, files_in, new_id, read_entry, write_body

logger = logging.getLogger("trainer_core.hub_push")

NAME: Final = ".outbox"
_LOCK: Final = "lock"
_STAGING: Final = ".staging-"
_DONE: Final = ".done-"
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
_IMMUTABLE: Final = ".safetensors"
_CHUNK: Final = 2**20
"""Bytes that are copied at once."""


class Outbox:
    """What a run has still to push.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / NAME
        self._said_damaged: set[Path] = set()
        self._saying = threading.Lock()  # run and thread both look

    def entries(self) -> list[Entry]:
        """Gives the complete entries, oldest first.

        Raises:
            OSError: the folder cannot be read.
            PluginError: it is a link; so do all that use it.
        """
        if not self._is_there():
            return []
        names = sorted(path.name for path in self.folder.iterdir() if FOLDER.fullmatch(path.name))
        return [entry for name in names if (entry := self._read(self.folder / name)) is not None]

    def add(self, push: Push, files: Mapping[str, Path]) -> Entry:
        """Queues `files`, by path below that of the push; the entry is durable when it is given.

        Raises:
            OSError: it could not be written; nothing is queued.
        """
        with self.staging() as staged:
            for name, source in files.items():
                _take(source, staged / name)
            return self.seal(push, staged)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Gives a folder to put files into; it is gone afterwards, unless it was sealed."""
        self._make()
        staging = self.folder / f"{_STAGING}{os.getpid()}-{uuid4().hex[:8]}"
        files = staging / FILES
        files.mkdir(parents=True)
        try:
            yield files
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def seal(self, push: Push, staged: Path) -> Entry:
        """Makes an entry of a folder of `staging`."""
        entry_id = new_id()
        _copy_what_is_linked(staged)
        _flush_tree(staged)
        write_body(staged.parent, entry_id, push)
        target = self.folder / f"{self._next_number():08d}-{entry_id}"
        staged.parent.rename(target)
        _flush(self.folder)
        return Entry(entry_id, target, push)

    def remove(self, entry: Entry) -> None:
        """Takes out an entry; one that is there in parts is never seen."""
        done = self.folder / f"{_DONE}{entry.folder.name}"
        entry.folder.rename(done)
        shutil.rmtree(done, ignore_errors=True)

    def tidy(self, *, staging: bool) -> None:
        """Deletes what a process that died left behind.

        Args:
            staging: also what was being queued; for the run, which alone queues.
        """
        prefixes = (_DONE, _STAGING) if staging else (_DONE,)
        for path in self.folder.iterdir() if self._is_there() else ():
            if path.name.startswith(prefixes):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Tells whether this process may upload; no other does until the end of the context.

        A file system without locks lets everybody: of two that commit an entry, one is refused by the Hub.
        """
        import fcntl

        self._make()
        how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(self.folder / _LOCK, how, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                yield True
                return
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            try:
                yield True
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone leaves it to children that were forked meanwhile
        finally:
            os.close(handle)

    @property
    def owner(self) -> str:
        """Number of the process that holds the lock, as it wrote it; for words."""
        file = self.folder / _LOCK
        return file.read_text(encoding="ascii", errors="replace") if file.is_file() else ""

    def _is_there(self) -> bool:
        if self.folder.is_symlink():  # what it leads to would be written to, and deleted in
            told = "is a link, and no outbox of trainer_core is one"
            raise PluginError(f"{self.folder}: {told}. Put the folder itself there, or remove the link.")
        return self.folder.is_dir()

    def _make(self) -> None:
        if not self._is_there():
            self.folder.mkdir(parents=True, exist_ok=True)

    def _next_number(self) -> int:
        numbers = [int(found[1]) for path in self.folder.iterdir() if (found := FOLDER.fullmatch(path.name))]
        return max(numbers, default=0) + 1

    def _read(self, folder: Path) -> Entry | None:
        """Gives an entry; None, with a warning, for one that is damaged, and for one that is just being taken out."""
        try:
            return read_entry(folder)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._say_damaged(folder, error)
            return None

    def _say_damaged(self, folder: Path, error: Exception) -> None:
        with self._saying:
            if folder in self._said_damaged:
                return
            self._said_damaged.add(folder)
        logger.warning("%s: is damaged and passed over, %s: %s. Delete it.", folder, type(error).__name__, error)

    def say_damage_again(self) -> None:
        """Begins anew to say of each damaged entry once that it is; for a new run."""
        with self._saying:
            self._said_damaged.clear()


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copies files from one folder into another, each in one rename.

    Raises:
        OSError: one cannot be copied.
        PluginError: a folder of `target` is a link, which may lead elsewhere.
    """
    for name in names:
        file = target / name
        for folder in Path(name).parents[:-1]:
            if (target / folder).is_symlink():
                raise PluginError(f"{target / folder}: is a link, and is not written through. Remove it.")
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)  # left by a killed run, or a link
        try:
            with (source / name).open("rb") as old, fresh.open("xb") as new:
                shutil.copyfileobj(old, new, _CHUNK)
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)


def _take(source: Path, target: Path) -> None:
    """Puts a file of a checkpoint into an entry."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == _IMMUTABLE:
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            logger.debug("%s: cannot be linked, it is copied.", source)
    shutil.copyfile(source, target)


def _copy_what_is_linked(folder: Path) -> None:
    """Puts copies in the place of symbolic links, whose files may be others when they are pushed."""
    for file in (folder / name for name in files_in(folder)):
        if file.is_symlink():
            source = file.resolve()
            file.unlink()
            shutil.copyfile(source, file)


def _flush_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            _flush(Path(place, name))
        _flush(Path(place))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
