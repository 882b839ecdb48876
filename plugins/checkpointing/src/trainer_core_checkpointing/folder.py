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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from trainer_core import CheckpointError
from trainer_core_checkpointing import files
from trainer_core_checkpointing.manifest import MANIFEST, Manifest, files_in, read_manifest, verify

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

    Raises:
        OSError: it was not done, or is not durable; what bore the name has it again, and the staging folder its own.
    """
    output_dir, old, is_placed = target.parent, None, False
    if os.path.lexists(target):
        old = _aside(target)
        files.calls.rename(target, old)
        files.flush_folder(output_dir)
    try:
        files.calls.rename(staging, target)
        is_placed = True
        files.flush_folder(output_dir)
    except OSError:
        if is_placed:
            files.calls.rename(target, staging)
        if old is not None:
            files.calls.rename(old, target)
        raise
    if old is not None and _LEFTOVER.fullmatch(old.name):
        delete(old)


def _aside(target: Path) -> Path:
    """Gives the name under which what is in the way of a checkpoint makes room."""
    try:
        is_ours = not target.is_symlink() and is_only_ours(target, read_manifest(target))
    except CheckpointError:
        is_ours = False
    if is_ours:
        return target.with_name(f".old-{target.name}-{os.getpid()}")
    number = 1
    while os.path.lexists(kept := target.with_name(f"{target.name}.kept-{number}")):
        number += 1
    logger.warning("%s: is in the way and no whole checkpoint of ours; it is kept as %s.", target, kept.name)
    return kept


def is_only_ours(path: Path, manifest: Manifest) -> bool:
    """Tells whether a checkpoint holds nothing but what its manifest names; what somebody added is not ours."""
    try:
        return set(files_in(path)) <= {MANIFEST, *manifest.files}
    except CheckpointError:  # a link, or something else that no save writes
        return False


def is_held(path: Path, manifest: Manifest) -> bool:
    """Tells whether weights of a checkpoint have a second name, as those that are queued for a push do.

    Deleting it would not free them, and whoever holds them may still want the rest.
    """
    weights = [path / name for name in manifest.files if name.endswith(".safetensors")]
    return any(file.is_file() and file.stat().st_nlink > 1 for file in weights)


def rotate(output_dir: Path, limit: int | None, run: str, keep: Collection[str]) -> None:
    """Deletes the oldest checkpoints of `run` beyond `limit`, but never the newest and never one in `keep`."""
    if limit is None:
        return
    own = [(path, manifest) for path, manifest in complete(output_dir) if manifest.run == run]
    kept = {own[0][0].name, *keep} & {path.name for path, _ in own} if own else set()
    for path, _ in own:  # newest first
        if len(kept) < limit:
            kept.add(path.name)
    for path, manifest in reversed(own):
        if path.name not in kept:
            _delete_ours(path, manifest)


def prune(output_dir: Path, run: str, keep: Collection[str], is_enough: Callable[[], bool]) -> list[str]:
    """Deletes checkpoints of `run`, oldest first, until there is space; gives the names of those that are gone.

    The newest that is whole stays, with all that are newer, those in `keep` and those that are held elsewhere.
    """
    own = [(path, manifest) for path, manifest in complete(output_dir) if manifest.run == run]
    newest = next((place for place, (path, _) in enumerate(own) if _is_whole(path)), len(own))
    gone: list[str] = []
    for path, manifest in reversed(own[newest + 1 :]):
        if gone and is_enough():
            break
        if path.name not in keep and not is_held(path, manifest) and _delete_ours(path, manifest):
            gone.append(path.name)
    return gone


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except (CheckpointError, OSError):
        return False
    return True


def delete_of_others(output_dir: Path, run: str) -> None:
    """Deletes the checkpoints of all runs but `run`, where that has one."""
    found = complete(output_dir)
    if any(manifest.run == run for _, manifest in found):
        for path, manifest in found:
            if manifest.run != run:
                _delete_ours(path, manifest)


def _delete_ours(path: Path, manifest: Manifest) -> bool:
    """Deletes a checkpoint, unless somebody has put something of theirs into it; tells whether it is gone."""
    if is_only_ours(path, manifest):
        return delete(path)
    logger.warning("%s: is kept, it holds files that no save has written. Move them, or delete it by hand.", path)
    return False


def delete(path: Path) -> bool:
    """Deletes a folder: it loses its name first, so that no half of it is ever taken for a checkpoint.

    Returns:
        Whether it is gone; where not, that was said.
    """
    name = path.name[5:] if path.name.startswith((".old-", ".tmp-", ".del-")) else f"{path.name}-{os.getpid()}"
    doomed = path.with_name(f".del-{name}")
    try:
        if path != doomed:
            if os.path.lexists(doomed):
                files.remove_tree(doomed)
            files.calls.rename(path, doomed)
            files.flush_folder(path.parent)  # else a power cut may keep its name and lose its files
        files.remove_tree(doomed)
    except OSError as error:
        logger.warning("%s: could not be deleted, %s. Remove it by hand.", doomed, error)
        return False
    return True


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
            files.calls.rename(path, target)
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


def flush_above(output_dir: Path) -> None:
    """Makes the name of the output folder durable, and those of the folders above it that this user may have made."""
    for place in output_dir.resolve().parents:
        if not os.access(place, os.R_OK | os.W_OK):
            return
        files.flush_folder(place)
