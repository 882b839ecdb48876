"""Activation checkpointing: activations are computed again in the backward pass instead of being kept.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer_core.errors import ModelError


def checkpoint_activations(model: nn.Module, options: Mapping[str, Any] | None) -> Callable[[], None]:
    """Turns activation checkpointing on for `model`; gives the function that turns it off again.

    A model with `gradient_checkpointing_enable` does it itself. Of any other, the members of every `nn.ModuleList` and
    `nn.Sequential` are checkpointed, one by one.

    Raises:
        ModelError: there is no such list in it.
    """
    if hasattr(model, "gradient_checkpointing_enable"):
        enable = cast("Callable[..., None]", model.gradient_checkpointing_enable)
        enable(gradient_checkpointing_kwargs=dict(options) if options else None)
        return cast("Callable[[], None]", model.gradient_checkpointing_disable)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    inside = {id(below) for outer in lists for below in outer.modules() if below is not outer}
    blocks = [block for outer in lists if id(outer) not in inside for block in outer if any(block.parameters())]
    if not blocks:
        raise ModelError(
            "activation_checkpointing: the model has no nn.ModuleList and no nn.Sequential whose members could be "
            "checkpointed. Give it gradient_checkpointing_enable() and gradient_checkpointing_disable()."
        )
    settings = {"use_reentrant": False, **(options or {})}
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward, settings)

    def undo() -> None:
        for block in blocks:
            vars(block).pop("forward", None)

    return undo


def _checkpointed(forward: Callable[..., Any], settings: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, **settings, **kwargs)
