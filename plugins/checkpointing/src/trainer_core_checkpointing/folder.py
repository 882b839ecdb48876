"""The checkpoints in an output folder: their names, which is the newest, how one is put in place, and rotation.

    checkpoint-<step>                    a checkpoint, complete because it bears this name and holds a manifest
    .tmp-checkpoint-<step>-<pid>         being written
    .old-checkpoint-<step>-<pid>         made room for a newer one of its step; goes back if that one did not arrive
    .del-checkpoint-<step>-<pid>         being deleted

Everything else in the folder is somebody else's and is left alone.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from trainer_core import CheckpointError
from trainer_core_checkpointing.manifest import Manifest, read_manifest

logger = logging.getLogger("trainer_core.checkpointing")

_NAME: Final = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
_LEFTOVER: Final = re.compile(r"\.(tmp|old|del)-(checkpoint-[0-9]+)-([0-9]+)")


def name_of(step: int) -> str:
    """Gives the name of the checkpoint of `step`."""
    return f"checkpoint-{step}"


def staging_name(step: int) -> str:
    """Gives the name of the folder in which this process writes the checkpoint of `step`."""
    return f".tmp-{name_of(step)}-{os.getpid()}"


def numbered(output_dir: Path) -> list[Path]:
    """Gives the folders that are named like checkpoints, highest step first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted((path for path in found if path.is_dir()), key=lambda path: -step_of(path))


def step_of(path: Path) -> int:
    """Gives the step that a checkpoint's name says."""
    return int(path.name.rpartition("-")[2])


def complete(output_dir: Path) -> list[tuple[Path, Manifest]]:
    """Gives our checkpoints, newest first; a folder whose manifest is missing or damaged is none of them."""
    return sorted(_complete(output_dir), key=lambda found: found[1].order, reverse=True)


def _complete(output_dir: Path) -> Iterator[tuple[Path, Manifest]]:
    for path in numbered(output_dir):
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            continue
        if manifest.step == step_of(path):
            yield path, manifest


def newest_in_words(output_dir: Path) -> str:
    """Says which checkpoint is the newest good one."""
    found = complete(output_dir)
    if not found:
        return f"There is no other checkpoint in {output_dir}."
    return f"The newest good checkpoint is {found[0][0]}."


def put_in_place(staging: Path, target: Path) -> None:
    """Gives a complete, flushed staging folder its name; what bore it before makes room.

    A checkpoint of ours that is replaced is deleted when the new one is durable; any other folder is kept beside it.
    """
    output_dir, old = target.parent, None
    if target.exists():
        old = _aside(target)
        os.rename(target, old)
        flush_folder(output_dir)
    try:
        os.rename(staging, target)
    except OSError:
        if old is not None:
            os.rename(old, target)
        raise
    flush_folder(output_dir)
    if old is not None and _LEFTOVER.fullmatch(old.name):
        delete(old)


def _aside(target: Path) -> Path:
    try:
        read_manifest(target)
    except CheckpointError:
        number = 1
        while (kept := target.with_name(f"{target.name}.kept-{number}")).exists():
            number += 1
        logger.warning("%s: is in the way and no whole checkpoint of ours; it is kept as %s.", target, kept.name)
        return kept
    return target.with_name(f".old-{target.name}-{os.getpid()}")


def rotate(output_dir: Path, limit: int | None, run: str, keep: Collection[str]) -> None:
    """Deletes the oldest checkpoints of `run` beyond `limit`, but never the newest and never one in `keep`."""
    if limit is None:
        return
    own = [path for path, manifest in complete(output_dir) if manifest.run == run]
    kept = {own[0].name, *keep} & {path.name for path in own} if own else set()
    for path in own:  # newest first
        if len(kept) < limit:
            kept.add(path.name)
    for path in reversed(own):
        if path.name not in kept:
            delete(path)


def delete_of_others(output_dir: Path, run: str) -> None:
    """Deletes the checkpoints of all runs but `run`, where that has one."""
    found = complete(output_dir)
    if any(manifest.run == run for _, manifest in found):
        for path, manifest in found:
            if manifest.run != run:
                delete(path)


def delete(path: Path) -> None:
    """Deletes a folder: it loses its name first, so that no half of it is ever taken for a checkpoint."""
    name = path.name[5:] if path.name.startswith((".old-", ".tmp-", ".del-")) else f"{path.name}-{os.getpid()}"
    doomed = path.with_name(f".del-{name}")
    try:
        if path != doomed:
            if doomed.exists():
                shutil.rmtree(doomed)
            os.rename(path, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        logger.warning("%s: could not be deleted, %s. Remove it by hand.", doomed, error)


def tidy(output_dir: Path) -> None:
    """Deals with what saves that were cut short left behind, unless their process still lives."""
    if not output_dir.is_dir():
        return
    for path in sorted(output_dir.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or _lives_elsewhere(int(match[3])):
            continue
        target = output_dir / match[2]
        if match[1] == "old" and not target.exists():
            os.rename(path, target)
            logger.warning("%s: is back, the save that was to replace it was cut short.", target)
        else:
            delete(path)


def _lives_elsewhere(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def flush_tree(folder: Path) -> None:
    """Flushes every file and folder below `folder`, and itself, to the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush_file(Path(place, name))
        flush_folder(Path(place))


def flush_file(path: Path) -> None:
    """Flushes a file's content to the disk."""
    _flush(path, os.O_RDONLY)


def flush_folder(path: Path) -> None:
    """Flushes the names in a folder to the disk; Windows has no such call and needs none."""
    if os.name != "nt":
        _flush(path, os.O_RDONLY | os.O_DIRECTORY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
