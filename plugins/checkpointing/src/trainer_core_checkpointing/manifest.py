"""The manifest of a checkpoint: what makes a folder one, and what every file in it is checked against.

`manifest.json` is written last. It names each file with size and SHA-256, says which run wrote it, at which step,
with which versions, settings and plugins, and holds a SHA-256 of itself. A folder without it is no checkpoint of ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from trainer_core import CheckpointError
from trainer_core_checkpointing.tree import read_json

MANIFEST: Final = "manifest.json"
FORMAT: Final = "trainer_core checkpoint"
SCHEMA: Final = 1
"""Version of the layout; a reader refuses a newer one."""
_CHUNK: Final = 2**20
_HEX: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a file must be.

    Attributes:
        size: in bytes.
        sha256: of these bytes, in hex.
        grows: the file may be longer; only its first `size` bytes count.
    """

    size: int
    sha256: str
    grows: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        run: of the run that wrote it; the same for all that were resumed from one another.
        generation: how often runs in this folder were begun anew or branched off; a higher one is newer.
        step: updates done.
        world_size: ranks that wrote it.
        batch_size: samples a micro-batch a rank.
        seed: of the run.
        is_resumable: whether it holds more than the model.
        saved_at: time of day, for the reader.
        versions: of python, torch, trainer_core.
        plugins: name of each plugin, its class and version.
        settings: all settings; secrets are masked.
        sources: who gave each of them.
        files: by path in the folder, with `/`.
    """

    run: str
    generation: int
    step: int
    world_size: int
    batch_size: int
    seed: int
    is_resumable: bool
    saved_at: str
    versions: dict[str, str] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, int]:
        """Sorts checkpoints from old to new."""
        return self.generation, self.step


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into `folder`."""
    (folder / MANIFEST).write_bytes(_text({"format": FORMAT, "schema": SCHEMA, **asdict(manifest)}))


def read_manifest(folder: Path) -> Manifest:
    """Gives the manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or a newer version wrote it.
    """
    file = folder / MANIFEST
    if file.is_symlink() or not file.is_file():
        what = f"is no checkpoint, it has no {MANIFEST}"
        raise CheckpointError(f"{folder}: {what}. Pass a folder that a save has written.")
    content = read_json(file)
    body = {name: value for name, value in content.items() if name != "sha256"} if isinstance(content, dict) else {}
    if body.get("format") != FORMAT or not isinstance(body.get("schema"), int):
        raise CheckpointError(f"{file}: is not the manifest of a checkpoint. Pass a folder that a save has written.")
    if body["schema"] > SCHEMA:
        raise CheckpointError(
            f"{file}: was written by a newer version, schema {body['schema']}; this one reads {SCHEMA}. "
            f"Upgrade trainer-core-checkpointing."
        )
    if _text(body) != file.read_bytes():
        raise CheckpointError(f"{file}: is damaged, its checksum does not fit. Use another checkpoint.")
    try:
        return _manifest(body)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: is not whole, {error!r}. Use another checkpoint.") from error


def verify(folder: Path) -> Manifest:
    """Checks every file of a checkpoint against its manifest and gives that.

    Raises:
        CheckpointError: a file is missing, additional, of another size or content, or no regular file; it is named.
    """
    manifest = read_manifest(folder)
    found = set(files_in(folder)) - {MANIFEST}
    for name in sorted(found - manifest.files.keys()):
        what = "does not belong to the checkpoint"
        raise CheckpointError(f"{folder / name}: {what}. Remove it, or use another checkpoint.")
    for name, entry in manifest.files.items():
        if name not in found:
            raise CheckpointError(f"{folder / name}: is missing. Use another checkpoint.")
        size = (folder / name).stat().st_size
        if size < entry.size or (size > entry.size and not entry.grows):
            raise CheckpointError(
                f"{folder / name}: is damaged, it has {size} bytes instead of {entry.size}. Use another checkpoint."
            )
        if checksum(folder / name, entry.size) != entry.sha256:
            raise CheckpointError(f"{folder / name}: is damaged, its checksum does not fit. Use another checkpoint.")
    return manifest


def files_in(folder: Path) -> Iterator[str]:
    """Gives the path of every file below `folder`, with `/`.

    Raises:
        CheckpointError: there is something else than regular files and folders.
    """
    for place, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(place, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise CheckpointError(f"{path}: is no regular file. Remove it, or use another checkpoint.")
        for name in names:
            yield Path(place, name).relative_to(folder).as_posix()


def checksum(file: Path, size: int) -> str:
    """Gives the SHA-256 of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        while size > 0 and (chunk := opened.read(min(size, _CHUNK))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def _text(body: dict[str, Any]) -> bytes:
    """Gives the one text of a manifest, so that any other byte is damage."""
    digest = hashlib.sha256(json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=2, ensure_ascii=True) + "\n").encode("ascii")


def _manifest(body: dict[str, Any]) -> Manifest:
    for name, kind in _TYPES.items():
        if type(body[name]) is not kind:
            raise TypeError(f"{name} must be of type {kind.__name__}")
    if body["step"] < 0 or body["generation"] < 0 or body["world_size"] < 1 or body["batch_size"] < 1:
        raise ValueError("a count is out of range")
    files = {}
    for name, entry in body["files"].items():
        files[name] = FileEntry(int(entry["size"]), str(entry["sha256"]), bool(entry["grows"]))
        if files[name].size < 0 or not _HEX.fullmatch(files[name].sha256):
            raise ValueError(f"the entry of {name!r} is out of range")
    return Manifest(**{name: body[name] for name in _TYPES if name != "files"}, files=files)


_TYPES: Final[dict[str, type]] = {
    "run": str,
    "generation": int,
    "step": int,
    "world_size": int,
    "batch_size": int,
    "seed": int,
    "is_resumable": bool,
    "saved_at": str,
    "versions": dict,
    "plugins": dict,
    "settings": dict,
    "sources": dict,
    "files": dict,
}
