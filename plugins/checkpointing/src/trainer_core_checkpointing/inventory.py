"""What checkpoints an output folder has, for somebody who looks from outside; nothing is written.

A run may be writing into the folder at the same time: a checkpoint that goes while it is looked at is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer_core import CheckpointError
from trainer_core_checkpointing import folder
from trainer_core_checkpointing.checking import check
from trainer_core_checkpointing.history import read_rows
from trainer_core_checkpointing.layout import HISTORY, STATE
from trainer_core_checkpointing.manifest import Manifest, look, read_manifest
from trainer_core_checkpointing.untrusted import read_json


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint.

    Attributes:
        path: its folder.
        manifest: what it says of itself; None where that cannot be read.
        problem: what is wrong with it; empty where nothing was found.
        metric: value of the metric that decides, where it was evaluated at this step.
        is_best: whether the newest checkpoint of its run calls it the best.
    """

    path: Path
    manifest: Manifest | None
    problem: str = ""
    metric: tuple[str, float] | None = None
    is_best: bool = False

    @property
    def num_bytes(self) -> int:
        """What its files take, those that it shares with other checkpoints included."""
        return 0 if self.manifest is None else sum(entry.size for entry in self.manifest.files.values())


def entries(output_dir: Path, *, verifies: bool) -> list[Entry]:
    """Gives the checkpoints in a folder, newest first, those without a readable manifest at the end.

    Args:
        output_dir: of a run.
        verifies: read every file to its end, not the names and sizes alone.
    """
    found = [entry for path in folder.numbered(output_dir) if (entry := _entry(path, verifies=verifies)) is not None]
    found.sort(key=lambda entry: (-1, -1) if entry.manifest is None else entry.manifest.order, reverse=True)
    for run in dict.fromkeys(entry.manifest.run for entry in found if entry.manifest is not None):
        found = _with_metrics(found, run)
    return found


def newest_valid(found: list[Entry]) -> Entry | None:
    """Gives the newest of `found` that is valid to the last byte, and that a run can go on from."""
    for entry in found:
        if entry.manifest is not None and entry.manifest.is_resumable and not entry.problem:
            try:
                check(entry.path)
            except CheckpointError:
                continue
            return entry
    return None


def _entry(path: Path, *, verifies: bool) -> Entry | None:
    manifest = None
    try:
        manifest = read_manifest(path)
        (check if verifies else look)(path)
    except CheckpointError as error:
        return Entry(path, manifest, str(error)) if path.exists() else None
    return Entry(path, manifest)


def _with_metrics(found: list[Entry], run: str) -> list[Entry]:
    """Gives `found` with what the newest checkpoint of a run that can be read tells of metrics."""
    own = [entry for entry in found if entry.manifest is not None and entry.manifest.run == run]
    best, metrics = next(_told(own), (None, {}))
    return [
        replace(entry, is_best=entry.path.name == best, metric=metrics.get(folder.step_of(entry.path)))
        if entry in own
        else entry
        for entry in found
    ]


def _told(own: list[Entry]) -> Iterator[tuple[str | None, dict[int, tuple[str, float]]]]:
    for entry in own:
        manifest = entry.manifest
        if manifest is None or not manifest.is_resumable or entry.problem:
            continue
        file = entry.path / f"{STATE}.json"
        try:
            counters = read_json(file, manifest.files[file.name])["counters"]
            rows = read_rows(entry.path / HISTORY, manifest.files[HISTORY])
            yield counters["best_model_checkpoint"], _metrics(rows, str(manifest.settings.get("metric_for_best_model")))
        except (CheckpointError, LookupError, TypeError):
            continue


def _metrics(rows: list[dict[str, Any]], given: str) -> dict[int, tuple[str, float]]:
    """Gives the metric that decides, by step."""
    short = "loss" if given == "None" else given
    name = short if short.startswith("eval_") else f"eval_{short}"
    return {
        row["step"]: (name, float(row[name]))
        for row in rows
        if isinstance(row.get("step"), int) and isinstance(row.get(name), int | float)
    }
