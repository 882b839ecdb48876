"""Whether a run can go on from a checkpoint: every byte, and what the state in it says.

Nothing of the size of the model is held in memory here: files are hashed a chunk at a time, and tensors are looked at
by their shapes. What is loaded afterwards is read once and compared with the same manifest while it is read.
"""

from __future__ import annotations

from pathlib import Path

from trainer_core_checkpointing.history import read_rows
from trainer_core_checkpointing.layout import HISTORY, STATE, rank_name
from trainer_core_checkpointing.manifest import Manifest, verify
from trainer_core_checkpointing.schema import check_own, check_shared
from trainer_core_checkpointing.tree import read_tree
from trainer_core_checkpointing.weights import read_weight_shapes


def check(path: Path) -> Manifest:
    """Gives the manifest of a checkpoint that is valid: whole, and with weights and a state that can be loaded.

    Raises:
        CheckpointError: it is not; the file is named.
    """
    manifest = verify(path)
    read_weight_shapes(path, manifest.files)
    if manifest.is_resumable:
        _check_state(path, manifest)
    return manifest


def _check_state(path: Path, manifest: Manifest) -> None:
    files = manifest.files
    check_shared(read_tree(path, STATE, files, shapes_only=True), manifest, path / f"{STATE}.json")
    for rank in range(manifest.world_size):
        name = rank_name(rank)
        check_own(read_tree(path, name, files, shapes_only=True), path / f"{name}.json")
    read_rows(path / HISTORY, files[HISTORY])
