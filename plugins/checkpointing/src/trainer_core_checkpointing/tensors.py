"""Tensors from a safetensors file that anybody may have written.

The header is checked before any memory is taken: its length, that each tensor's bytes are as many as shape and type
say, and that they fill the file without a gap or an overlap. Then each tensor is read once into memory of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from trainer_core import InvalidCheckpointError
from trainer_core_checkpointing.untrusted import Content, Seal, check_memory, opened, parse_json

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the format."""
_MAX_DIMENSIONS: Final = 64
_LENGTH_BYTES: Final = 8
_KEYS: Final = {"dtype", "shape", "data_offsets"}

_NAMES: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
DTYPES: Final[Mapping[str, torch.dtype]] = {
    code: getattr(torch, name) for code, name in _NAMES.items() if hasattr(torch, name)
}
"""Types by their names in the format."""


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor in a file.

    Attributes:
        name: of the tensor.
        dtype: type of an element.
        shape: as torch has it.
        begin, end: its bytes, counted from the end of the header.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_shapes(file: Path, seal: Seal | None = None) -> dict[str, Place]:
    """Gives types and shapes of the tensors of a file, and where they are in it.

    Raises:
        InvalidCheckpointError: as `read_tensors`.
    """
    with opened(file, seal) as content:
        places = _places(content)
        check_memory(content.file, content.size)
        return {place.name: place for place in places}


def read_tensors(file: Path, seal: Seal | None = None) -> dict[str, torch.Tensor]:
    """Gives the tensors of a file, on the CPU, each in memory of its own.

    Raises:
        InvalidCheckpointError: it is missing, damaged, no safetensors, or larger than the memory.
    """
    with opened(file, seal) as content:
        places = _places(content)
        check_memory(content.file, content.size)
        return {place.name: _tensor(content, place) for place in places}


def _tensor(content: Content, place: Place) -> torch.Tensor:
    try:
        tensor = torch.empty(place.shape, dtype=place.dtype)
    except RuntimeError as error:  # torch's word for no memory
        raise MemoryError from error
    if place.end > place.begin:
        content.read_into(memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data))
    return tensor


def _places(content: Content) -> list[Place]:
    """Gives the tensors of a file in the order of their bytes."""
    header = _header(content)
    try:
        places = [_place(name, told) for name, told in header.items() if name != "__metadata__"]
        places.sort(key=lambda place: (place.begin, place.end))
        _check_cover(places, content.left)
    except ValueError as error:
        raise InvalidCheckpointError(content.file, f"is no safetensors, {error}") from error
    return places


def _header(content: Content) -> dict[str, Any]:
    length = int.from_bytes(content.read(_LENGTH_BYTES), "little") if content.left >= _LENGTH_BYTES else -1
    if not 0 < length <= min(content.left, MAX_HEADER_BYTES):
        raise InvalidCheckpointError(content.file, f"is no safetensors, a header of {length} bytes cannot be")
    header = parse_json(content.read(length), content.file)
    if not isinstance(header, dict):
        raise InvalidCheckpointError(content.file, "is no safetensors, its header is no object")
    return header


def _place(name: str, told: Any) -> Place:
    if not isinstance(told, dict) or told.keys() != _KEYS:
        raise ValueError(f"{name!r} must have {', '.join(sorted(_KEYS))}")
    code, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"shape and offsets of {name!r} must be counts")
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{name!r} is of an unknown type, {code!r}")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[code].itemsize:
        raise ValueError(f"{name!r} has {end - begin} bytes, which its shape {shape} of {code} does not take")
    if math.prod(size for size in shape if size) >= 2**63:  # which torch multiplies, though there is no element
        raise ValueError(f"{name!r} has a shape that cannot be, {shape}")
    return Place(name, DTYPES[code], tuple(shape), begin, end)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(places: Iterable[Place], size: int) -> None:
    """Raises ValueError where bytes of a file belong to two tensors, or to none."""
    reached = 0
    for place in places:
        if place.begin != reached:
            raise ValueError(f"{place.name!r} begins at byte {place.begin} instead of {reached}")
        reached = place.end
    if reached != size:
        raise ValueError(f"its tensors take {reached} bytes of {size}")
