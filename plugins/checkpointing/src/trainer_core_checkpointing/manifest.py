"""The manifest of a checkpoint: what makes a folder one, and what every file in it is checked against.

`manifest.json` is written last. It names each file with size and SHA-256, says which run wrote it, at which step,
with which versions, settings and plugins, and holds a SHA-256 of itself. A folder without it is no checkpoint of ours.

The checksums tell damage, not an attacker, who can make new ones: what a manifest says is checked like everything else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, StrictBool, StrictInt, StrictStr, TypeAdapter, ValidationError

from trainer_core import CheckpointError, InvalidCheckpointError
from trainer_core_checkpointing.layout import required_files
from trainer_core_checkpointing.mistakes import Count, first_mistake
from trainer_core_checkpointing.untrusted import check_memory, check_seal, check_size, parse_json, read_bytes

MANIFEST: Final = "manifest.json"
FORMAT: Final = "trainer_core checkpoint"
SCHEMA: Final = 1
"""Version of the layout; a reader refuses a newer one."""
_CHUNK: Final = 2**20
MAX_BYTES: Final = 4 * 2**20
"""A larger manifest is neither written nor read."""
MAX_DEPTH: Final = 16
"""Folders in folders of a checkpoint."""
_NUMBERED: Final = re.compile(r"checkpoint-(0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a file must be.

    Attributes:
        size: in bytes.
        sha256: of these bytes, in hex.
        grows: the file may be longer; only its first `size` bytes count.
    """

    size: Count
    sha256: Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]
    grows: StrictBool = False


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

    run: StrictStr
    generation: Count
    step: Count
    world_size: Annotated[int, Field(strict=True, ge=1, le=2**20)]
    batch_size: Annotated[int, Field(strict=True, ge=1, lt=2**63)]
    seed: StrictInt
    is_resumable: StrictBool
    saved_at: StrictStr
    versions: dict[str, StrictStr] = field(default_factory=dict)
    plugins: dict[str, StrictStr] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, StrictStr] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, int]:
        """Sorts checkpoints from old to new."""
        return self.generation, self.step


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into `folder`.

    Raises:
        CheckpointError: it would be larger than what is read.
    """
    (folder / MANIFEST).write_bytes(manifest_text(manifest))


def manifest_text(manifest: Manifest) -> bytes:
    """Gives what the file of a manifest holds.

    Raises:
        CheckpointError: it would be larger than what is read.
    """
    text = _text({"format": FORMAT, "schema": SCHEMA, **asdict(manifest)})
    if len(text) > MAX_BYTES:
        what = f"would have {len(text)} bytes, over {MAX_BYTES}"
        raise CheckpointError(f"{MANIFEST}: {what}. Keep large values out of the settings.")
    return text


def read_manifest(folder: Path) -> Manifest:
    """Gives the manifest of a checkpoint.

    Raises:
        InvalidCheckpointError: there is none, it is damaged, a newer version wrote it, or it says what cannot be.
    """
    file = folder / MANIFEST
    if not os.path.lexists(file):
        what = f"is no checkpoint, it has no {MANIFEST}"
        raise InvalidCheckpointError(folder, what, "Pass a folder that a save has written.")
    text = read_bytes(file, max_bytes=MAX_BYTES)
    content = parse_json(text, file)
    body = {name: value for name, value in content.items() if name != "sha256"} if isinstance(content, dict) else {}
    if body.get("format") != FORMAT or type(body.get("schema")) is not int or body["schema"] < 1:
        what = "is not the manifest of a checkpoint"
        raise InvalidCheckpointError(file, what, "Pass a folder that a save has written.")
    if body["schema"] > SCHEMA:
        what = f"was written by a newer version, schema {body['schema']}; this one reads {SCHEMA}"
        raise InvalidCheckpointError(file, what, "Upgrade trainer-core-checkpointing.")
    if not _is_text_of(text, body):
        raise InvalidCheckpointError(file, "is damaged, its checksum does not fit")
    return _manifest(body, file)


def verify(folder: Path) -> Manifest:
    """Checks every file of a checkpoint against its manifest and gives that.

    Raises:
        InvalidCheckpointError: as `look`, or a file is of another content.
    """
    manifest = look(folder)
    for name, entry in manifest.files.items():
        check_seal(folder / name, entry)
    return manifest


def look(folder: Path) -> Manifest:
    """Checks names and sizes of the files of a checkpoint against its manifest and gives that; no other file is opened.

    Raises:
        InvalidCheckpointError: a file is missing, additional, of another size, or no regular file, or the whole is of
            another step than its name says.
    """
    manifest = read_manifest(folder)
    name = _NUMBERED.fullmatch(folder.name)
    if name is not None and int(name[1]) != manifest.step:
        what = f"is of step {manifest.step}, not of the one in the folder's name"
        raise InvalidCheckpointError(folder / MANIFEST, what)
    missing = dict(manifest.files)
    for name_of_file in files_in(folder):
        if name_of_file not in manifest.files and name_of_file != MANIFEST:
            what = "does not belong to the checkpoint"
            raise InvalidCheckpointError(folder / name_of_file, what, "Remove it, or use another checkpoint.")
        missing.pop(name_of_file, None)
    for name_of_file in missing:
        raise InvalidCheckpointError(folder / name_of_file, "is missing")
    for name_of_file, entry in manifest.files.items():
        check_size(folder / name_of_file, entry)
        check_memory(folder / name_of_file, entry.size)
    return manifest


def files_in(folder: Path) -> Iterator[str]:
    """Gives the path of every file below `folder`, with `/`.

    Raises:
        InvalidCheckpointError: there is something else than regular files and folders, or folders are too deep.
    """
    waiting = [""]
    while waiting:
        place = waiting.pop()
        with _listed(folder / place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield place + entry.name
            elif not entry.is_dir(follow_symlinks=False):
                raise InvalidCheckpointError(Path(entry), "is no regular file", "Remove it, or use another checkpoint.")
            elif place.count("/") >= MAX_DEPTH:
                raise InvalidCheckpointError(Path(entry), f"is more than {MAX_DEPTH} folders deep")
            else:
                waiting.append(f"{place}{entry.name}/")


@contextmanager
def _listed(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise InvalidCheckpointError(folder, f"cannot be listed, {error.strerror or error}") from error


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


def _is_text_of(text: bytes, body: dict[str, Any]) -> bool:
    try:
        return _text(body) == text
    except RecursionError:  # deeper than any that was written
        return False


def _manifest(body: dict[str, Any], file: Path) -> Manifest:
    told = {name: value for name, value in body.items() if name not in ("format", "schema")}
    try:
        manifest = _adapter().validate_python(told)
    except ValidationError as error:
        raise InvalidCheckpointError(file, first_mistake(error)) from None
    for name in manifest.files:
        if not _is_inside(name):
            raise InvalidCheckpointError(file, f"names a file that cannot be in the folder, {name!r}")
    for name in required_files(manifest.world_size) if manifest.is_resumable else ():
        if name not in manifest.files:
            raise InvalidCheckpointError(file, f"lacks {name}, which a checkpoint has")
    return manifest


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    is_plain = all(0 < len(part.encode("utf-8", "surrogatepass")) <= 255 and part not in (".", "..") for part in parts)
    return is_plain and len(parts) <= MAX_DEPTH + 1 and not set(name) & {"\0", "\\"} and name != MANIFEST


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
