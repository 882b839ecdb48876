"""A model's weights, read from a folder that anybody may have written, and what of a model is written.

They lie in one safetensors file, or in shards that an index names, as the model's own library writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar

import torch
from torch import nn

from trainer_core import CheckpointError, InvalidCheckpointError, printable
from trainer_core_checkpointing.tensors import Place, read_shapes, read_tensors
from trainer_core_checkpointing.untrusted import Seal, read_json

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

Read = TypeVar("Read", Place, torch.Tensor)


def model_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Gives the tensors that make up a model; of those that are the same memory seen in the same way, one.

    Returns:
        The tensors by name, those of the model itself; and what a safetensors file says of them: its origin, and for
        each name that is left out the one under which its tensor is found.
    """
    kept: dict[tuple[object, ...], str] = {}
    tensors: dict[str, torch.Tensor] = {}
    left_out: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        first = name
        if tensor.layout is torch.strided and tensor.numel():
            memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
            first = kept.setdefault((*memory, tensor.shape, tensor.stride(), tensor.dtype), name)
        if first == name:
            tensors[name] = tensor
        else:
            left_out[name] = first
    return tensors, {"format": "pt", **left_out}


def read_model(model: nn.Module, folder: Path, seals: Mapping[str, Seal] | None = None) -> None:
    """Loads the weights in `folder` into `model`, in place; where they cannot be, the model is as it was.

    Args:
        model: what they are loaded into.
        folder: where they are.
        seals: what each file must be, by name; what is loaded are then those bytes, and no other file is read.

    Raises:
        CheckpointError: there are none, they are damaged, or they are of another model.
    """
    _check_fit(model, folder, read_weight_shapes(folder, seals))
    model.load_state_dict(read_weights(folder, seals), strict=False)


def read_weights(folder: Path, seals: Mapping[str, Seal] | None = None) -> dict[str, torch.Tensor]:
    """Gives the weights in `folder`, of whatever model; `seals` as in `read_model`.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    return _joined(read_tensors, _files(folder, seals))


def read_weight_shapes(folder: Path, seals: Mapping[str, Seal] | None = None) -> dict[str, Place]:
    """Gives types and shapes of the weights in `folder`; the bytes of the tensors are not looked at.

    Raises:
        CheckpointError: there are none, or none can be in files like these.
    """
    return _joined(read_shapes, dict.fromkeys(_files(folder, seals)))


def _files(folder: Path, seals: Mapping[str, Seal] | None) -> dict[Path, Seal | None]:
    """Gives the files with the weights in `folder`, and what each must be."""
    has_index = INDEX in seals if seals is not None else (folder / INDEX).is_file()
    if has_index:
        index = read_json(folder / INDEX, None if seals is None else seals[INDEX])
        names = sorted(_shards(index, folder / INDEX))
    else:
        names = [WEIGHTS]
    for name in names:
        if name not in seals if seals is not None else not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has no {name}. Pass a folder that save_model or a checkpoint wrote.")
    return {folder / name: None if seals is None else seals[name] for name in names}


def _shards(index: Any, file: Path) -> set[str]:
    names = index.get("weight_map") if isinstance(index, dict) else None
    shards: set[str] = set()
    for shard in names.values() if isinstance(names, dict) else [None]:
        if not isinstance(shard, str) or PurePath(shard).name != shard or not shard.endswith(".safetensors"):
            raise InvalidCheckpointError(file, f"must name safetensors files beside it, got {shard!r}")
        shards.add(shard)
    return shards


def _joined(read: Callable[[Path, Seal | None], dict[str, Read]], files: Mapping[Path, Seal | None]) -> dict[str, Read]:
    """Gives what `read` gives of all files together."""
    tensors: dict[str, Read] = {}
    for file, seal in files.items():
        found = read(file, seal)
        for name in found.keys() & tensors.keys():
            raise InvalidCheckpointError(file, f"holds {name!r}, which another file holds too")
        tensors |= found
    return tensors


def _check_fit(model: nn.Module, folder: Path, tensors: Mapping[str, Place]) -> None:
    """Compares names and shapes with those of `model`."""
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name in own and own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: holds another model, {name} has shape {tuple(tensor.shape)} there and "
                f"{tuple(own[name].shape)} here. Build the model as it was when it was saved."
            )
    shared = _shared_names(own)
    missing = [name for name in own if name not in tensors and not (shared.get(name, set()) & tensors.keys())]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: holds another model; {_named('missing there', missing)}{_named('unknown here', unexpected)}"
            f"Build the model as it was when it was saved."
        )


def _shared_names(state: dict[str, torch.Tensor]) -> dict[str, set[str]]:
    """Gives, for each tensor that shares its memory with others, their names; only one of them is written."""
    places: dict[tuple[int, int], set[str]] = {}
    for name, tensor in state.items():
        if tensor.numel():
            places.setdefault((tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())), set()).add(name)
    return {name: names for names in places.values() if len(names) > 1 for name in names}


def _named(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(map(printable, names[:3]))}{more}. "
