"""Resuming on another number of ranks: what a rank takes of the parts that others saved, and where the data goes on.

An update has as many samples as before, see `Trainer.batching`, and a save stands between two updates, so the samples
of the open epoch that are done are a whole number of micro-batches however they are cut now; at its end they are all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainer_core import CheckpointError
from trainer_core_checkpointing import random_states
from trainer_core_checkpointing.layout import STATE, rank_name
from trainer_core_checkpointing.tree import read_tree
from trainer_core_checkpointing.untrusted import read_json

if TYPE_CHECKING:
    from trainer_core import Trainer
    from trainer_core_checkpointing.manifest import Manifest

logger = logging.getLogger("trainer_core.checkpointing")


def read_counters(path: Path, manifest: Manifest) -> Mapping[str, Any]:
    """Gives the counters of a checkpoint, of which every file was checked, without reading a tensor of it."""
    file = path / f"{STATE}.json"
    return cast("Mapping[str, Any]", read_json(file, manifest.files[file.name])["counters"])


def read_own(trainer: Trainer, path: Path, manifest: Manifest) -> dict[str, Any]:
    """Gives this rank's part; with another number of ranks, what can be made of the parts that are there."""
    ranks = trainer.ranks
    if manifest.world_size == ranks.world_size:
        own: dict[str, Any] = read_tree(path, rank_name(ranks.rank), manifest.files)
        return own
    parts = [read_tree(path, rank_name(rank), manifest.files) for rank in range(manifest.world_size)]
    if ranks.is_main:
        told = "%s: was saved on %d rank(s), this run has %d; random states of a rank follow from seed, rank and step."
        logger.warning(told, path.name, manifest.world_size, ranks.world_size)
    states = random_states.derive(trainer.args.seed, ranks.rank, manifest.step, ranks.device)
    losses = _sum([part["losses"] for part in parts], is_here=ranks.is_main)
    return {**parts[min(ranks.rank, len(parts) - 1)], "losses": losses, "random_states": states}


def _sum(losses: list[Mapping[str, Any]], *, is_here: bool) -> dict[str, Any]:
    """Puts the sums of all ranks onto the main one; they add up over ranks."""
    summed = {name: sum(part[name] for part in losses) if is_here else 0.0 for name in ("total", "window_sum")}
    return {**losses[0], **summed}


def read_position(trainer: Trainer, manifest: Manifest, counters: Mapping[str, Any]) -> int:
    """Gives the micro-batches of the open epoch that are done, in those of this run.

    Raises:
        CheckpointError: a loader of the user's gave the data, and its share of the data on other ranks is not known.
    """
    batching, done = trainer.batching, int(counters["batches_done"])
    if not trainer.train_stream.is_own:
        _refuse_another_world(trainer, manifest)
        return done
    samples = done * manifest.batch_size * manifest.world_size
    return -(-samples // (batching.batch_size * batching.world_size))


def _refuse_another_world(trainer: Trainer, manifest: Manifest) -> None:
    if manifest.world_size != trainer.batching.world_size:
        raise CheckpointError(
            f"get_train_dataloader: gives a loader of its own, and what of its data is done on {manifest.world_size} "
            f"ranks is not known on others, got {trainer.batching.world_size}. Resume on {manifest.world_size}, or "
            f"let the trainer make the loader."
        )
