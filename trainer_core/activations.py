"""Activation checkpointing: activations are computed again in the backward pass instead of being kept.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer_core.errors import ModelError

KINDS: Final = ("activation_checkpointing", "gradient_checkpointing")
"""What transformers calls it in its methods, the newer name first."""


def checkpoint_activations(model: nn.Module, options: Mapping[str, Any] | None) -> Callable[[], None]:
    """Turns activation checkpointing on for `model`; gives the function that puts the model back.

    A model with `activation_checkpointing_enable` or `gradient_checkpointing_enable` does it itself. Of any other, the
    members of every `nn.ModuleList` and `nn.Sequential` are checkpointed, one by one.

    Raises:
        ModelError: there is no such list in it.
    """
    for kind in KINDS:
        if hasattr(model, f"{kind}_enable"):
            was_on = bool(getattr(model, f"is_{kind}", False))
            getattr(model, f"{kind}_enable")(**{f"{kind}_kwargs": dict(options) if options else None})
            disable: Callable[[], None] = getattr(model, f"{kind}_disable")
            return (lambda: None) if was_on else disable
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    inside = {id(below) for outer in lists for below in outer.modules() if below is not outer}
    blocks = [
        block
        for outer in lists
        if id(outer) not in inside
        for block in outer
        if next(block.parameters(), None) is not None
    ]
    if not blocks:
        raise ModelError(
            "activation_checkpointing: the model has no nn.ModuleList and no nn.Sequential whose members could be "
            "checkpointed. Give it gradient_checkpointing_enable() and gradient_checkpointing_disable()."
        )
    settings = {"use_reentrant": False, **(options or {})}
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward, settings)

    def undo() -> None:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward

    return undo


def _checkpointed(forward: Callable[..., Any], settings: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, **settings, **kwargs)
