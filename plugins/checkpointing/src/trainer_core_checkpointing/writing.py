"""How a checkpoint is written.

    stage   a folder that no reader takes for a checkpoint; all ranks write their files into it
    seal    the main rank flushes every file, writes the manifest, and flushes that and the folder
    place   one rename gives it its name, and the output folder is flushed

Until the rename there is no checkpoint; after the last flush it is durable. A failure removes the staging folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_core import CheckpointError, write_model
from trainer_core_checkpointing import describe, folder
from trainer_core_checkpointing.agreement import agreed, on_main
from trainer_core_checkpointing.history import History
from trainer_core_checkpointing.layout import HISTORY, STATE, rank_name, split
from trainer_core_checkpointing.manifest import MANIFEST, FileEntry, Manifest, checksum, files_in, write_manifest
from trainer_core_checkpointing.tree import write_tree

if TYPE_CHECKING:
    from trainer_core import Trainer


@dataclass(slots=True)
class Lineage:
    """Which run writes, as manifests say it; see `Manifest`."""

    run: str
    generation: int


class Writer:
    """Writes the checkpoints of one run.

    Args:
        trainer: whose run it is.
        output_dir: where they go.
        lineage: which run writes.
        only_model: leave out all that is not the model.
    """

    def __init__(self, trainer: Trainer, output_dir: Path, lineage: Lineage, *, only_model: bool) -> None:
        self.trainer = trainer
        self.output_dir = output_dir
        self.only_model = only_model
        self.history = History(output_dir)
        args = trainer.args
        self.template = Manifest(
            run=lineage.run,
            generation=lineage.generation,
            step=0,
            world_size=trainer.ranks.world_size,
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            is_resumable=not only_model,
            saved_at="",
            versions=describe.versions(),
            settings=describe.settings(trainer),
            sources=dict(args.sources),
        )

    def write(self, random_states: dict[str, Any]) -> Path:
        """Writes a checkpoint of this moment, on all ranks together, and gives its folder, which is durable.

        Raises:
            CheckpointError: a file could not be written; what was there before is untouched.
        """
        trainer, step = self.trainer, self.trainer.state.global_step
        state = {} if self.only_model else agreed(trainer, trainer.state_dict)
        staging = self.output_dir / str(trainer.ranks.from_main(folder.staging_name(step)))
        target = self.output_dir / folder.name_of(step)
        try:
            on_main(trainer, lambda: self._open(staging))
            self._write_model(staging)
            if not self.only_model:
                agreed(trainer, lambda: self._write_state(staging, state, random_states))
            on_main(trainer, lambda: self._seal_and_place(staging, target))
        except _WriteError as error:
            raise CheckpointError(f"{target}: {error}. {self._remedy()}") from error.__cause__
        finally:
            if trainer.is_main_rank:
                shutil.rmtree(staging, ignore_errors=True)
        return target

    def _open(self, staging: Path) -> None:
        with _naming(staging):
            self.output_dir.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()

    def _write_model(self, staging: Path) -> None:
        trainer = self.trainer
        if trainer.overrides("save_model"):
            trainer.save_model(staging)  # on all ranks: what it does is the user's, and it may wait for them
            return
        with _naming(staging / "model.safetensors"):
            on_main(trainer, lambda: write_model(trainer.model, staging, trainer.processing_class))

    def _write_state(self, staging: Path, state: dict[str, Any], random_states: dict[str, Any]) -> None:
        trainer = self.trainer
        shared, own = split(state, random_states)
        name = rank_name(trainer.ranks.rank)
        with _naming(staging / f"{name}.json"):
            write_tree(own, staging, name)
        if not trainer.is_main_rank:
            return
        with _naming(staging / f"{STATE}.safetensors"):
            write_tree(shared, staging, STATE)
        with _naming(self.history.file):
            self.history.extend_to(trainer.state.log_history)
            self.history.link_to(staging / HISTORY)

    def _seal_and_place(self, staging: Path, target: Path) -> None:
        with _naming(staging):
            folder.flush_tree(staging)
        files = {}
        for name in sorted(files_in(staging)):
            with _naming(staging / name):
                files[name] = self._entry(staging, name)
        manifest = replace(
            self.template,
            step=self.trainer.state.global_step,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            plugins=describe.plugins(self.trainer),
            files=files,
        )
        with _naming(staging / MANIFEST):
            write_manifest(staging, manifest)
            folder.flush_file(staging / MANIFEST)
            folder.flush_folder(staging)
        with _naming(target):
            folder.put_in_place(staging, target)

    def _entry(self, staging: Path, name: str) -> FileEntry:
        if name == HISTORY:
            return FileEntry(self.history.size, self.history.digest.hexdigest(), grows=True)
        size = (staging / name).stat().st_size
        return FileEntry(size, checksum(staging / name, size))

    def _remedy(self) -> str:
        newest = folder.newest_in_words(self.output_dir)
        return f"{newest} Free space or repair the disk, then resume from there."


class _WriteError(CheckpointError):
    """A file of a checkpoint could not be written."""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file whose writing fails."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # safetensors and libraries of models raise errors of their own
        named = getattr(error, "filename", None) or path
        cause = getattr(error, "strerror", None) or error
        raise _WriteError(f"could not be written, {Path(named).name}: {cause}") from error
