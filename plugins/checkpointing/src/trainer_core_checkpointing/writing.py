"""How a checkpoint is written.

    begin   a staging folder that no reader takes for a checkpoint, where there is space for it
    write   every rank writes its files, each flushed and its checksum computed on the way
    place   the manifest, flushed as well as the folder; one rename gives it its name; the output folder is flushed

Until the rename there is no checkpoint; after the last flush it is durable. `begin` is done by all ranks together;
`write` and `place` talk to nobody and touch nothing that the training changes, so that they may run behind it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core import write_model
from trainer_core_checkpointing import describe, disk, files, folder
from trainer_core_checkpointing.agreement import agreed
from trainer_core_checkpointing.content import Content, File, file_of_tensors, files_of_tree
from trainer_core_checkpointing.failures import WriteError, naming, together
from trainer_core_checkpointing.history import History
from trainer_core_checkpointing.layout import HISTORY, STATE, rank_name, split
from trainer_core_checkpointing.manifest import MANIFEST, FileEntry, Manifest, checksum, files_in, manifest_text
from trainer_core_checkpointing.weights import model_tensors

if TYPE_CHECKING:
    from trainer_core import Trainer

WEIGHTS: Final = "model.safetensors"


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

    Attributes:
        needed: bytes that the last save takes on the disk, as far as they are known.
    """

    def __init__(self, trainer: Trainer, output_dir: Path, lineage: Lineage, *, only_model: bool) -> None:
        self.trainer = trainer
        self.output_dir = output_dir
        self.only_model = only_model
        self.history = History(output_dir)
        self.needed = 0
        self._is_begun = False
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

    # On all ranks together

    def content(self, random_states: Mapping[str, Any]) -> Content:
        """Gives what this rank is to write of this moment; its tensors are those of the run."""
        trainer, step = self.trainer, self.trainer.state.global_step
        staging = str(trainer.ranks.from_main(folder.staging_name(step)))
        return agreed(trainer, lambda: self._content(self.output_dir / staging, random_states))

    def begin(self, content: Content) -> Content:
        """Checks the space, makes the staging folder, and lets a library that writes the model itself do so.

        Raises:
            WriteError: on every rank, where it failed on one; the staging folder is for the caller to remove.
        """
        trainer = self.trainer
        self.needed = sum(together(trainer, lambda: content.num_bytes)) + self._bytes_of_library()
        together(trainer, lambda: self._open(content.staging) if trainer.is_main_rank else None)
        found = together(trainer, lambda: self._write_by_library(content.staging))[0]
        return replace(content, elsewhere=found) if trainer.is_main_rank else content

    # On this rank alone, on any thread

    def write(self, content: Content, *, in_parallel: bool) -> dict[str, FileEntry]:
        """Writes the files of this rank, flushed, and gives what the manifest says of them.

        Args:
            content: what to write.
            in_parallel: compute checksums on a second thread.

        Raises:
            WriteError: a file could not be written.
        """
        entries = {}
        for name in content.elsewhere:
            entries[name] = self._of_library(content, name)
        for file in content.files:
            with naming(content.staging / file.name):
                size = file.num_bytes
                sha256 = files.write_file(
                    content.staging / file.name, _until_given_up(content, file), size, in_parallel=in_parallel
                )
                entries[file.name] = FileEntry(size, sha256)
        if content.rows is not None:
            with naming(self.history.file):
                self.history.append(content.rows)
                self.history.link_to(content.staging / HISTORY)
            entries[HISTORY] = self.history.entry
        return entries

    def place(self, content: Content, entries: Mapping[str, FileEntry]) -> Path:
        """Makes the staging folder a checkpoint, durable when it returns; on the main rank.

        Args:
            content: what was written.
            entries: of all ranks.

        Raises:
            WriteError: it could not be done; what was there before is untouched.
        """
        staging, target = content.staging, content.target
        with naming(staging):
            found = sorted(files_in(staging))
        known = dict(entries)
        for name in found:
            if name not in known:
                known[name] = self._of_library(content, name)
        manifest = replace(
            self.template,
            step=content.step,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            plugins=dict(content.plugins),
            files={name: known[name] for name in sorted(known)},
        )
        with naming(staging / MANIFEST):
            text = manifest_text(manifest)
            files.write_file(staging / MANIFEST, [text], len(text), in_parallel=False)
            files.flush_folders(staging)
        with naming(target):
            folder.put_in_place(staging, target)
        return target

    def discard(self, staging: Path) -> None:
        """Removes what a save that failed has written."""
        if os.path.lexists(staging):
            folder.delete(staging)

    # Help

    def _content(self, staging: Path, random_states: Mapping[str, Any]) -> Content:
        trainer, is_main = self.trainer, self.trainer.is_main_rank
        found: list[File] = []
        if is_main and not self._has_library:
            tensors, metadata = model_tensors(trainer.model)
            found.append(file_of_tensors(WEIGHTS, tensors, metadata))
        rows = None
        if not self.only_model:
            shared, own = split(trainer.state_dict(), random_states)
            found += files_of_tree(own, rank_name(trainer.ranks.rank))
            if is_main:
                found += files_of_tree(shared, STATE)
                rows = self.history.new_rows(trainer.state.log_history)
        return Content(
            step=trainer.state.global_step,
            staging=staging,
            target=self.output_dir / folder.name_of(trainer.state.global_step),
            files=tuple(found),
            plugins=describe.plugins(trainer),
            rows=rows,
        )

    @property
    def _has_library(self) -> bool:
        """Whether the model's own library, or the user's `save_model`, writes the weights."""
        return self.trainer.overrides("save_model") or hasattr(self.trainer.model, "save_pretrained")

    def _bytes_of_library(self) -> int:
        """Gives what a library will write, as far as that is known; what the user's `save_model` writes is not."""
        if not self._has_library or self.trainer.overrides("save_model"):
            return 0
        return disk.model_bytes(self.trainer.model)

    def _open(self, staging: Path) -> None:
        with naming(staging):
            files.make_folder(self.output_dir)
            if not self._is_begun:
                folder.flush_above(self.output_dir)
                self._is_begun = True
            disk.check_free(self.output_dir, self.needed)
            if os.path.lexists(staging):
                folder.delete(staging)
            files.calls.mkdir(staging)

    def _write_by_library(self, staging: Path) -> tuple[str, ...]:
        """Lets others write the model, or what belongs to it; gives the names of their files on the main rank."""
        trainer, is_main, processing = self.trainer, self.trainer.is_main_rank, self.trainer.processing_class
        with naming(staging / WEIGHTS):
            if trainer.overrides("save_model"):
                trainer.save_model(staging)  # on all ranks: what it does is the user's, and it may wait for them
            elif is_main and self._has_library:
                write_model(trainer.model, staging, processing)
            elif is_main and hasattr(processing, "save_pretrained"):
                processing.save_pretrained(staging)
            return tuple(sorted(files_in(staging))) if is_main else ()

    def _of_library(self, content: Content, name: str) -> FileEntry:
        with naming(content.staging / name):
            _check_wanted(content)
            files.flush_file(content.staging / name)
            size = (content.staging / name).stat().st_size
            return FileEntry(size, checksum(content.staging / name, size))


def _until_given_up(content: Content, file: File) -> Iterator[files.Piece]:
    for piece in file.pieces():
        _check_wanted(content)
        yield piece


def _check_wanted(content: Content) -> None:
    if content.given_up.is_set():
        raise WriteError("was given up, the run was stopped at once")
