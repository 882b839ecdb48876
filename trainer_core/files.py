"""A file that is replaced as a whole, or not at all; a folder whose name is durable."""

from __future__ import annotations

import os
from io import BufferedWriter
from pathlib import Path


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it that are missing; each is durable in the one above when it is there.

    Raises:
        OSError: one cannot be made.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Makes the names in a folder durable; Windows has no such call and needs none."""
    if os.name != "nt":
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_here(path: Path, flags: int) -> int:
    """Gives a descriptor of a file that we write: no link, which may lead elsewhere, and no pipe that nobody reads.

    Raises:
        OSError: it is refused, or cannot be opened.
    """
    beside = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags | beside, 0o666)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that at every instant the old one or the new one is there; the new one is durable at the end.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _created(staged) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    flush_folder(path.parent)


def _created(path: Path) -> BufferedWriter:
    """Opens a file that is new; what bears its name, left by a killed run or a link to elsewhere, goes first."""
    try:
        return path.open("xb")
    except FileExistsError:
        path.unlink()
        return path.open("xb")
