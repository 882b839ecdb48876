"""What a replay changes in objects that are the caller's, put back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trainer_core import Trainer


@contextmanager
def kept(trainer: Trainer) -> Iterator[None]:
    """Puts the model's weights back afterwards, and the states of an optimizer and a schedule that the user passed.

    A trainer with a `model_init` trains another model in a replay; its own needs nothing.
    """
    holders: list[Any] = [one for one in trainer.users_optimizers if one is not None]
    if trainer.model_init is None:
        holders.append(trainer.model)
    states = [_copied(holder.state_dict()) for holder in holders]
    try:
        yield
    finally:
        for holder, state in zip(holders, states, strict=True):
            holder.load_state_dict(state)


def _copied(value: Any) -> Any:
    """Gives a copy of a state, its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copied(item)) for key, item in value.items())
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return copy.deepcopy(value)
