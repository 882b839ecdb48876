"""How a checkpoint is found, checked and loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainer_core import CheckpointError, InvalidCheckpointError, printable
from trainer_core_checkpointing import folder
from trainer_core_checkpointing.agreement import agreed, on_main
from trainer_core_checkpointing.checking import check
from trainer_core_checkpointing.history import read_rows
from trainer_core_checkpointing.layout import HISTORY, STATE, rank_name
from trainer_core_checkpointing.manifest import MANIFEST, Manifest
from trainer_core_checkpointing.schema import check_own, check_shared
from trainer_core_checkpointing.tree import read_tree
from trainer_core_checkpointing.weights import read_model
from trainer_core_checkpointing.worldsize import read_own, read_position

if TYPE_CHECKING:
    from trainer_core import Trainer

logger = logging.getLogger("trainer_core.checkpointing")

RECORD = "checkpoint_passed_over"
"""Kind of the journal's records of checkpoints that are not what they should be."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A checkpoint that was wanted and is not used.

    Attributes:
        wanted: "newest" or "best".
        checkpoint: name of its folder.
        file: path of the file that is wrong.
        reason: what is wrong with it.
    """

    wanted: str
    checkpoint: str
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that was found valid.

    Attributes:
        path: its folder.
        manifest: what each file in it was found to be, and must be when it is loaded.
        passed_over: those that are newer, or may be, and are not valid.
    """

    path: Path
    manifest: Manifest
    passed_over: list[PassedOver] = field(default_factory=list)


def find(output_dir: Path, source: str | bool, *, falls_back: bool = True) -> Found | None:
    """Gives the checkpoint that `source` means, with every file of it checked; None for True where nothing was saved.

    Args:
        output_dir: where the newest one is looked for.
        source: a folder, or the name of one in `output_dir`, or True for the newest.
        falls_back: for True, take the newest valid one where the newest is not valid.

    Raises:
        CheckpointError: there is none, or the one that is meant is not valid or cannot be resumed from.
    """
    if source is True:
        return _newest(output_dir, falls_back=falls_back)
    path = _named(output_dir, Path(str(source)))
    try:
        return Found(path, _resumable(path))
    except InvalidCheckpointError as error:
        _refuse(error, path, output_dir)


def _newest(output_dir: Path, *, falls_back: bool) -> Found | None:
    passed_over: list[PassedOver] = []
    for path in _candidates(output_dir):
        try:
            return Found(path, _resumable(path), passed_over)
        except CheckpointError as error:
            if not falls_back and isinstance(error, InvalidCheckpointError):
                _refuse(error, path, output_dir, "set on_invalid_checkpoint='fall_back'")
            logger.warning("%s: is passed over. %s", printable(path.name), error)
            passed_over.append(_passed_over("newest", path, error))
    if not passed_over:
        return None
    raise CheckpointError(
        f"resume_from_checkpoint: no checkpoint in {output_dir} can be resumed from, got True. "
        f"Pass False or leave it out to start anew."
    )


def _candidates(output_dir: Path) -> Iterator[Path]:
    """Gives the folders named like checkpoints, newest first; before them those that do not say how new they are."""
    whole = [path for path, _ in folder.complete(output_dir)]
    yield from (path for path in folder.numbered(output_dir) if path not in whole)
    yield from whole


def _passed_over(wanted: str, path: Path, error: CheckpointError) -> PassedOver:
    file = error.file if isinstance(error, InvalidCheckpointError) else path
    return PassedOver(wanted, printable(path.name), printable(file), str(error))


def _refuse(error: InvalidCheckpointError, path: Path, output_dir: Path, remedy: str = "") -> NoReturn:
    """Raises what is wrong with a checkpoint, with the one that may serve instead."""
    valid = next((other for other in _candidates(output_dir) if other != path and _is_resumable(other)), None)
    if valid is None:
        raise error
    others = f" To use it, name it, or {remedy}." if remedy else ""
    raise CheckpointError(f"{error} The newest valid one is {valid}.{others}") from error


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
    return path


def _wrong(what: str, path: Path) -> CheckpointError:
    return CheckpointError(f"resume_from_checkpoint: {what}, got {str(path)!r}. Pass that of a checkpoint.")


def _resumable(path: Path) -> Manifest:
    manifest = check(path)
    if not manifest.is_resumable:
        raise CheckpointError(
            f"{path}: holds the model alone, as save_only_model asked. "
            f"Load its weights into a new run, or resume from a checkpoint with a state."
        )
    return manifest


def _is_resumable(path: Path) -> bool:
    try:
        _resumable(path)
    except CheckpointError:
        return False
    return True


def load(trainer: Trainer, found: Found) -> dict[str, Any]:
    """Loads weights, state and history of a checkpoint into `trainer`, on all ranks together.

    Returns:
        The random states that this rank goes on with.

    Raises:
        CheckpointError: it was changed since it was found, or is not one of this model and these settings.
    """
    return agreed(trainer, lambda: _load(trainer, found.path, found.manifest))


def _load(trainer: Trainer, path: Path, manifest: Manifest) -> dict[str, Any]:
    files = manifest.files
    shared, own = read_tree(path, STATE, files), read_own(trainer, path, manifest)
    check_shared(shared, manifest, path / f"{STATE}.json")
    check_own(own, path / f"{rank_name(trainer.ranks.rank)}.json")
    rows = read_rows(path / HISTORY, files[HISTORY])
    read_model(trainer.model, path, files)
    states: dict[str, Any] = own.pop("random_states")
    counters = shared["counters"]
    counters["batches_done"] = read_position(trainer, manifest, counters)
    trainer.load_state_dict({**shared, **own})
    trainer.state.log_history[:] = rows
    return states


def load_best(trainer: Trainer, output_dir: Path, *, falls_back: bool = True) -> Path | None:
    """Loads the weights of the best checkpoint, where it is there and valid; warns and journals where not.

    Raises:
        CheckpointError: it is not valid, and `falls_back` is False.
    """
    best, folders = trainer.state.best_model_checkpoint, [output_dir]
    name = None if best is None else Path(best).name
    if trainer.resumed_from is not None:
        folders.append(trainer.resumed_from.parent)  # the best may be older than this run's own folder
    found = on_main(trainer, lambda: _valid_best(trainer, folders, name, falls_back=falls_back))
    if found is None:
        return None
    agreed(trainer, lambda: read_model(trainer.model, found.path, found.manifest.files))
    return found.path


def _valid_best(trainer: Trainer, folders: list[Path], name: str | None, *, falls_back: bool) -> Found | None:
    where = "load_best_model_at_end: the model keeps the weights of the last step"
    if name is None:
        logger.warning("%s, no checkpoint of the best evaluation was written.", where)
        return None
    paths = [place / name for place in folders]
    path = next((path for path in paths if path.is_dir()), paths[0])
    try:
        return Found(path, check(path))
    except CheckpointError as error:
        if not falls_back:
            raise
        logger.warning("%s. %s", where, error)
        tell(trainer, [_passed_over("best", path, error)])
        return None


def tell(trainer: Trainer, passed_over: list[PassedOver]) -> None:
    """Adds to the journal which checkpoints were passed over and why."""
    for one in passed_over:
        fields = {"wanted": one.wanted, "checkpoint": one.checkpoint, "file": one.file, "reason": one.reason}
        trainer.record(RECORD, **fields)
