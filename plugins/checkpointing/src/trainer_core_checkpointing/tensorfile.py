"""Tensors in the safetensors format, written piece by piece from where they lie, so that nothing is copied on the way.

    8 bytes    length of the header, little-endian
    header     JSON: dtype, shape and place of each tensor; spaces at its end, so that tensors begin at a multiple of 8
    tensors    their bytes one after another, widest elements first

Any reader of the format reads it. It is written here because a serializer that writes the file itself leaves only one
way to a checksum: reading everything back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Final

import torch

from trainer_core import CheckpointError
from trainer_core_checkpointing.files import Piece
from trainer_core_checkpointing.tensors import DTYPES

CODES: Final[Mapping[torch.dtype, str]] = {dtype: code for code, dtype in DTYPES.items()}
"""The format's names of torch's types."""
_ALIGNED: Final = 8


def header_of(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Gives what stands before the tensors in a file.

    Raises:
        CheckpointError: the format holds no such tensor.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        dtype, start = _dtype(name, tensor), end
        end += tensor.nbytes
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensors: Mapping[str, torch.Tensor]) -> Iterator[Piece]:
    """Gives the bytes of the tensors in the order of the header, a tensor at a time."""
    for name in _order(tensors):
        tensor = tensors[name].detach()
        if tensor.numel():
            flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().view(-1)
            yield memoryview(flat.view(torch.uint8).numpy().data)


def num_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Gives what the tensors take, without the header."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _dtype(name: str, tensor: torch.Tensor) -> str:
    dtype = CODES.get(tensor.dtype)
    if dtype is None or tensor.layout is not torch.strided or tensor.is_quantized or sys.byteorder != "little":
        raise CheckpointError(
            f"{name}: safetensors holds no such tensor, got {tensor.dtype}, {tensor.layout}. "
            f"Save it as a dense, real one."
        )
    return dtype
