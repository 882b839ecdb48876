"""What differs between two checkpoints: tensors one by one, and every other value of the state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from trainer_core_checkpointing.checking import check
from trainer_core_checkpointing.layout import STATE, rank_name
from trainer_core_checkpointing.manifest import Manifest
from trainer_core_checkpointing.tree import read_tree
from trainer_core_checkpointing.weights import read_weights

_Values: TypeAlias = dict[str, Any]
"""Tensors and plain values, by their places."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place at which two checkpoints differ.

    Attributes:
        part: "weights", "state", "rank 0", "settings", "versions" or "plugins".
        name: of the tensor or value.
        what: how they differ.
    """

    part: str
    name: str
    what: str


_LONG: Final = 100
"""Signs beyond which two values are not told."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints side by side.

    Attributes:
        same: how many tensors and values of the state that are equal to the bit.
        state: differences of weights and state.
        described: differences of settings, versions and plugins, which change no bit of the state.
    """

    same: int
    state: list[Difference]
    described: list[Difference]


def compare(one: Path, other: Path) -> Comparison:
    """Compares two valid checkpoints; memory is taken for one file of each at a time.

    Raises:
        CheckpointError: one of them is not valid.
    """
    manifests = check(one), check(other)
    same, differences = 0, []
    for part in dict.fromkeys(part for manifest in manifests for part in _parts(manifest)):
        found, equal = _differences(part, _values(part, one, manifests[0]), _values(part, other, manifests[1]))
        differences += found
        same += equal
    return Comparison(same, differences, list(_described(*manifests)))


def _parts(manifest: Manifest) -> list[str]:
    ranks = [rank_name(rank) for rank in range(manifest.world_size)]
    return ["weights", STATE, *ranks] if manifest.is_resumable else ["weights"]


def _values(part: str, path: Path, manifest: Manifest) -> _Values:
    if part == "weights":
        return dict(read_weights(path, manifest.files))
    if part not in _parts(manifest):
        return {}
    return dict(_flat(read_tree(path, part, manifest.files)))


def _flat(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Gives the leaves of a tree with their places; a list without tensors and further trees is one leaf."""
    if isinstance(tree, dict) and tree:
        for name, item in tree.items():
            yield from _flat(item, f"{where}.{name}" if where else str(name))
    elif isinstance(tree, list | tuple) and any(isinstance(item, dict | list | tuple | torch.Tensor) for item in tree):
        for place, item in enumerate(tree):
            yield from _flat(item, f"{where}.{place}")
    else:
        yield where, tree


def _differences(part: str, one: _Values, other: _Values) -> tuple[list[Difference], int]:
    """Gives what differs, in the order of the first, and how many values are the same."""
    found, same = [], 0
    for name in [*one, *(name for name in other if name not in one)]:
        if name not in one or name not in other:
            found.append(Difference(part, name, "only in the first" if name in one else "only in the second"))
        elif what := _difference(one[name], other[name]):
            found.append(Difference(part, name, what))
        else:
            same += 1
    return found, same


def _difference(one: Any, other: Any) -> str:
    """Says how two values differ; nothing where they are equal to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return _difference_of_tensors(one, other)
    mine, theirs = _told(one), _told(other)
    if mine == theirs:
        return ""
    return f"{mine} / {theirs}" if len(mine) + len(theirs) <= _LONG else "differs"


def _told(value: Any) -> str:
    return f"tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def _difference_of_tensors(one: torch.Tensor, other: torch.Tensor) -> str:
    if one.dtype != other.dtype or one.shape != other.shape:
        mine, theirs = (f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in (one, other))
        return f"{mine} / {theirs}"
    if torch.equal(_bits(one), _bits(other)):
        return ""
    distance = (one.double() - other.double()).abs()
    known = distance[~distance.isnan()]
    largest = float(known.max()) if known.numel() else 0.0
    unknown = int(distance.isnan().sum())
    return f"max abs difference {largest:.6g}" + (f", {unknown} not a number" if unknown else "")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _described(one: Manifest, other: Manifest) -> Iterator[Difference]:
    """Gives what manifests say of settings, versions and plugins, where it differs."""
    for part in ("settings", "versions", "plugins"):
        yield from _differences(part, dict(_flat(getattr(one, part))), dict(_flat(getattr(other, part))))[0]
