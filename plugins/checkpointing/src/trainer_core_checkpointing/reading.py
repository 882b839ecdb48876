"""How a checkpoint is found, checked and loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_core import CheckpointError, read_model
from trainer_core_checkpointing import folder, random_states
from trainer_core_checkpointing.agreement import agreed, on_main
from trainer_core_checkpointing.history import read_rows
from trainer_core_checkpointing.layout import HISTORY, STATE, rank_name
from trainer_core_checkpointing.manifest import MANIFEST, Manifest, read_manifest, verify
from trainer_core_checkpointing.tree import read_tree

if TYPE_CHECKING:
    from trainer_core import Trainer

logger = logging.getLogger("trainer_core.checkpointing")


def find(output_dir: Path, source: str | bool) -> Path | None:
    """Gives the checkpoint that `source` means, with every file of it checked; None for True where nothing was saved.

    Args:
        output_dir: where the newest one is looked for.
        source: a folder, or the name of one in `output_dir`, or True for the newest that is whole.

    Raises:
        CheckpointError: there is none, or the one that was named is not whole or cannot be resumed from.
    """
    return _named(output_dir, Path(str(source))) if source is not True else _newest(output_dir)


def _newest(output_dir: Path) -> Path | None:
    whole = folder.complete(output_dir)
    for path in folder.numbered(output_dir):
        if path not in [found for found, _ in whole]:
            logger.warning("%s: is passed over. %s", path.name, _why_not(path))
    for path, _ in whole:
        try:
            _check(path)
        except CheckpointError as error:
            logger.warning("%s: is passed over. %s", path.name, error)
        else:
            return path
    if not folder.numbered(output_dir):
        return None
    raise CheckpointError(
        f"resume_from_checkpoint: no checkpoint in {output_dir} can be resumed from, got True. "
        f"Pass False or leave it out to start anew."
    )


def _why_not(path: Path) -> str:
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return str(error)
    return f"{path / MANIFEST}: is of step {manifest.step}, not of the one in the folder's name."


def _named(output_dir: Path, path: Path) -> Path:
    if not path.exists() and (output_dir / path).is_dir():
        path = output_dir / path
    if not path.is_dir():
        raise _wrong("the folder is a file" if path.exists() else "the folder does not exist", path)
    if not any(path.iterdir()):
        raise _wrong("the folder is empty", path)
    inside = folder.complete(path)
    if inside and not (path / MANIFEST).exists():
        raise CheckpointError(
            f"resume_from_checkpoint: is a folder of checkpoints, got {str(path)!r}. "
            f"Pass one of them, for example {str(inside[0][0])!r}."
        )
    _check(path)
    return path


def _wrong(what: str, path: Path) -> CheckpointError:
    return CheckpointError(f"resume_from_checkpoint: {what}, got {str(path)!r}. Pass that of a checkpoint.")


def _check(path: Path) -> None:
    if not verify(path).is_resumable:
        raise CheckpointError(
            f"{path}: holds the model alone, as save_only_model asked. "
            f"Load its weights into a new run, or resume from a checkpoint with a state."
        )


def load(trainer: Trainer, path: Path) -> tuple[Manifest, dict[str, Any]]:
    """Loads weights, state and history of a checkpoint into `trainer`, on all ranks together.

    Returns:
        The manifest, and the random states that this rank goes on with.
    """
    return agreed(trainer, lambda: _load(trainer, path))


def _load(trainer: Trainer, path: Path) -> tuple[Manifest, dict[str, Any]]:
    manifest = read_manifest(path)
    read_model(trainer.model, path)
    shared, own = read_tree(path, STATE), _own(trainer, path, manifest)
    states = own.pop("random_states")
    counters = shared["counters"]
    step = counters["global_step"]
    if step != manifest.step:
        raise CheckpointError(f"{path / STATE}.json: is of step {step}, not {manifest.step}. Use another checkpoint.")
    counters["batches_done"] = _position(trainer, manifest, counters["batches_done"])
    trainer.load_state_dict({**shared, **own})
    trainer.state.log_history[:] = read_rows(path / HISTORY, manifest.files[HISTORY].size)
    return manifest, states


def _own(trainer: Trainer, path: Path, manifest: Manifest) -> dict[str, Any]:
    """Gives this rank's part; with another number of ranks, what can be made of the parts that are there."""
    ranks = trainer.ranks
    if manifest.world_size == ranks.world_size:
        own: dict[str, Any] = read_tree(path, rank_name(ranks.rank))
        return own
    parts = [read_tree(path, rank_name(rank)) for rank in range(manifest.world_size)]
    if ranks.is_main:
        logger.warning(
            "%s: was saved on %d ranks, this run has %d; random states of a rank follow from seed, rank and step.",
            path.name,
            manifest.world_size,
            ranks.world_size,
        )
    own = dict(parts[min(ranks.rank, len(parts) - 1)])
    own["losses"] = _sum([part["losses"] for part in parts], is_here=ranks.rank == 0)
    if ranks.rank >= len(parts):
        own["random_states"] = random_states.derive(trainer.args.seed, ranks.rank, manifest.step, ranks.device)
    return own


def _sum(losses: list[Mapping[str, Any]], *, is_here: bool) -> dict[str, Any]:
    """Puts the sums of all ranks onto the main one; they add up over ranks."""
    summed = {name: sum(part[name] for part in losses) if is_here else 0.0 for name in ("total", "window_sum")}
    return {**losses[0], **summed}


def _position(trainer: Trainer, manifest: Manifest, batches_done: int) -> int:
    """Gives the micro-batches of the open epoch that are done, in those of this run.

    Raises:
        CheckpointError: the samples that are done are no whole number of them.
    """
    before = manifest.batch_size * manifest.world_size
    now = trainer.args.per_device_train_batch_size * trainer.ranks.world_size
    if before == now or batches_done == 0:
        return batches_done
    samples = batches_done * before
    if samples % now:
        raise CheckpointError(
            f"per_device_train_batch_size: {samples} samples of the epoch are done, which is no whole number of "
            f"micro-batches over all ranks, got {now}. "
            f"Resume with {manifest.batch_size} on {manifest.world_size} rank(s)."
        )
    return samples // now


def load_best(trainer: Trainer, output_dir: Path) -> Path | None:
    """Loads the weights of the best checkpoint, where it is there and whole; warns where not."""
    best, folders = trainer.state.best_model_checkpoint, [output_dir]
    name = None if best is None else Path(best).name
    if trainer.resumed_from is not None:
        folders.append(trainer.resumed_from.parent)  # the best may be older than this run's own folder
    path = on_main(trainer, lambda: _whole_best(folders, name))
    if path is not None:
        agreed(trainer, lambda: read_model(trainer.model, path))
    return path


def _whole_best(folders: list[Path], name: str | None) -> Path | None:
    where = "load_best_model_at_end: the model keeps the weights of the last step"
    if name is None:
        logger.warning("%s, no checkpoint of the best evaluation was written.", where)
        return None
    paths = [place / Path(name).name for place in folders]
    path = next((path for path in paths if path.is_dir()), paths[0])
    try:
        verify(path)
    except (CheckpointError, OSError) as error:
        logger.warning("%s. %s", where, error)
        return None
    return path
