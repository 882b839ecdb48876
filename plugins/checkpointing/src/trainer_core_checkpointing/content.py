"""What one rank writes into a checkpoint: the files, as they were at one moment of the run.

The text of a file is made at once; its tensors are those of the run itself, or copies in host memory where the training
goes on while they are written. The copies are kept and filled again by the next save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import torch

from trainer_core_checkpointing import tensorfile
from trainer_core_checkpointing.files import Piece
from trainer_core_checkpointing.history import Rows
from trainer_core_checkpointing.tree import pack_tree


@dataclass(frozen=True, slots=True)
class File:
    """One file: `text`, and the tensors after it, where it is one of tensors."""

    name: str
    text: bytes
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes on the disk."""
        return len(self.text) + tensorfile.num_bytes(self.tensors)

    def pieces(self) -> Iterator[Piece]:
        """Gives what is in it."""
        yield self.text
        yield from tensorfile.bytes_of(self.tensors)


@dataclass(frozen=True, slots=True)
class Content:
    """What one rank writes at one save.

    Attributes:
        step: updates done.
        staging: folder into which it goes.
        target: name that the folder gets.
        files: what this rank writes.
        plugins: what the manifest says of plugins.
        rows: logged rows that are not in the history's file yet; None where this rank writes no history.
        elsewhere: files that a library has written into `staging`; on the main rank.
        keep: names of checkpoints that rotation leaves alone.
        given_up: set when nobody waits for it any more.
    """

    step: int
    staging: Path
    target: Path
    files: tuple[File, ...]
    plugins: Mapping[str, str]
    rows: Rows | None = None
    elsewhere: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    given_up: Event = field(default_factory=Event)

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that are written here."""
        return sum(file.num_bytes for file in self.files) + (0 if self.rows is None else len(self.rows.lines))


def files_of_tree(tree: object, name: str) -> list[File]:
    """Gives the files of a state: `<name>.json`, and `<name>.safetensors` when it holds tensors.

    Raises:
        CheckpointError: something in it cannot be saved without pickling; it is named.
    """
    tensors: dict[str, torch.Tensor] = {}
    found = [File(f"{name}.json", pack_tree(tree, tensors, name))]
    if tensors:
        found.append(file_of_tensors(f"{name}.safetensors", tensors))
    return found


def file_of_tensors(name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> File:
    """Gives a file in the safetensors format."""
    return File(name, tensorfile.header_of(tensors, metadata), tensors)


class HostMemory:
    """Memory of this process into which the tensors of saves are copied, one save after another."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def copy(self, content: Content) -> Content:
        """Gives the content with all tensors copied; those of the save before are overwritten."""
        files = tuple(replace(file, tensors=self._copies(file)) for file in content.files)
        wanted = {(file.name, name) for file in files for name in file.tensors}
        for gone in self._buffers.keys() - wanted:
            del self._buffers[gone]
        return replace(content, files=files)

    @property
    def num_bytes(self) -> int:
        """Bytes that are kept."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def _copies(self, file: File) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {
                name: self._buffer((file.name, name), tensor).copy_(tensor) for name, tensor in file.tensors.items()
            }

    def _buffer(self, key: tuple[str, str], tensor: torch.Tensor) -> torch.Tensor:
        kept = self._buffers.get(key)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            is_pinned = tensor.device.type == "cuda"
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_pinned)
            self._buffers[key] = kept
        return kept
