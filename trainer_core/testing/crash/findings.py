"""What is in an output folder, as far as it must be the same however often the run was killed, and what is wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trainer_core.testing.crash.witness import WITH_CLOCK, untimed

CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")
LEFTOVER: Final = re.compile(r"\.(tmp|old|del)-")
_OF_A_MANIFEST: Final = ("step", "world_size", "batch_size", "seed", "is_resumable", "versions", "plugins", "sources")


def step_of(name: str) -> int:
    """Gives the step that a checkpoint's name says."""
    return int(name.rpartition("-")[2])


def checkpoints(folder: Path) -> list[str]:
    """Gives the names of the checkpoints, lowest step first."""
    found = [path.name for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def leftovers(folder: Path) -> list[str]:
    """Gives the names of what a save that was cut short left, and of files beside the known ones."""
    return sorted(path.name for path in folder.iterdir() if LEFTOVER.match(path.name)) if folder.is_dir() else []


def content(folder: Path) -> dict[str, Any]:
    """Gives all that must be the same, without times: each file of each checkpoint, and the file of rows if any."""
    kept: dict[str, Any] = {}
    for name in checkpoints(folder):
        try:
            kept[name] = _checkpoint(folder / name)
        except (OSError, ValueError, KeyError) as error:
            kept[name] = f"not whole, {error!r}"
    log = folder / "log.jsonl"
    rows = _rows(log.read_bytes()) if log.is_file() else None
    return {"checkpoints": kept, "leftovers": leftovers(folder), "rows": rows}


def flaws(checkpoint: Path) -> Iterator[str]:
    """Gives what a checkpoint holds otherwise than its manifest says, in words."""
    try:
        entries = json.loads((checkpoint / "manifest.json").read_bytes())["files"]
        there = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
        for name in sorted(there ^ {*entries, "manifest.json"}):
            yield f"{name} is {'missing' if name in entries else 'additional'}"
        for name in sorted(there & entries.keys()):
            data = (checkpoint / name).read_bytes()[: entries[name]["size"]]
            if hashlib.sha256(data).hexdigest() != entries[name]["sha256"]:
                yield f"{name} is of another content"
    except (OSError, ValueError, KeyError) as error:
        yield repr(error)


def _checkpoint(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_bytes())
    files: dict[str, Any] = {"manifest.json": {name: manifest[name] for name in _OF_A_MANIFEST}}
    for name, entry in sorted(manifest["files"].items()):
        data = (path / name).read_bytes()[: entry["size"]]
        if name.endswith(".json"):  # it names the output folder, which lies beside this one where it was copied
            data = re.sub(re.escape(str(path.parent.parent).encode()) + rb"/[^/\"]+", b".", data)
        files[name] = _rows(data) if name.endswith(".jsonl") else _file(name, data)
    return files


def _file(name: str, data: bytes) -> Any:
    if not name.endswith(".json"):
        return data.hex()
    value = json.loads(data)
    if isinstance(value, dict) and WITH_CLOCK in value.get("plugins", {}):
        del value["plugins"][WITH_CLOCK]
    return value


def _rows(data: bytes) -> list[dict[str, Any]]:
    return [_row(line) for line in data.splitlines()]


def _row(line: bytes) -> dict[str, Any]:
    try:
        return untimed(json.loads(line))
    except ValueError:
        return {"no row": line.decode(errors="replace")}


def differences(expected: Any, actual: Any, where: str = "") -> Iterator[str]:
    """Gives the places at which two values differ, in words."""
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for name in [*expected, *(name for name in actual if name not in expected)]:
            if name not in actual or name not in expected:
                yield f"{where}.{name}: is {'gone' if name in expected else 'new'}"
            else:
                yield from differences(expected[name], actual[name], f"{where}.{name}")
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for place, (one, other) in enumerate(zip(expected, actual, strict=True)):
            yield from differences(one, other, f"{where}[{place}]")
    elif type(expected) is not type(actual) or expected != actual:
        yield f"{where}: is {_short(actual)} instead of {_short(expected)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:400]}…"
