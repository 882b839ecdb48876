"""A model's weights in a folder: safetensors, with what the model's own library puts beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from trainer_core.errors import CheckpointError

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


def write_model(model: nn.Module, folder: Path, processing_class: Any = None) -> None:
    """Writes `model` into `folder`.

    A model with `save_pretrained` writes its own files (config, shards); any other its state dict, tensors that share
    memory once. `processing_class` is saved beside it where it can be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "save_pretrained"):
        cast("Callable[[Path], None]", model.save_pretrained)(folder)
    else:
        from safetensors.torch import save_model

        save_model(model, str(folder / WEIGHTS))
    if hasattr(processing_class, "save_pretrained"):
        processing_class.save_pretrained(folder)


def read_model(model: nn.Module, folder: Path) -> None:
    """Loads the weights in `folder` into `model`, in place.

    Raises:
        CheckpointError: there are none, or they are of another model.
    """
    tensors = _tensors(folder)
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
    model.load_state_dict(tensors, strict=False)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if (folder / INDEX).is_file():
        shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / Path(shard).name for shard in shards]
    else:
        files = [folder / WEIGHTS]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder}: has no {file.name}. Pass a folder that save_model or a checkpoint wrote.")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


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
    return f"{what}: {', '.join(names[:3])}{more}. "
