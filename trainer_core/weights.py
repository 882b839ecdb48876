"""A model in a folder: its weights as safetensors, with what its own library puts beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from torch import nn

WEIGHTS: Final = "model.safetensors"


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
