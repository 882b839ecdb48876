"""The random states of one rank: python, numpy's global one, torch on the CPU and on this rank's device."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

_WORDS: Final = 624
"""Words of the state of a Mersenne twister."""


def capture(device: torch.device) -> dict[str, Any]:
    """Gives all random states as a tree of tensors and plain values."""
    states = {
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def restore(states: Mapping[str, Any], device: torch.device) -> None:
    """Sets what `capture` gave; a kind of device that was not there then keeps its state."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], device)


def check(states: Mapping[str, Any]) -> None:
    """Sets what `capture` gave in generators that nobody uses; tensors may be shapes alone.

    Raises:
        ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError: it cannot be set.
    """
    random.Random().setstate(states["python"])
    keys, place = states["numpy"]["state"]["key"], states["numpy"]["state"]["pos"]
    if len(keys) != _WORDS or not all(type(key) is int and 0 <= key < 2**32 for key in keys):
        raise ValueError(f"numpy: must have {_WORDS} words of 32 bits")
    if type(place) is not int or not 0 <= place <= _WORDS:  # numpy reads there without a look
        raise ValueError(f"numpy: must stand between 0 and {_WORDS}, got {place!r}")
    np.random.RandomState().set_state(states["numpy"])
    for name in states.keys() - {"python", "numpy"}:
        state = states[name]
        if getattr(state, "dtype", None) is not torch.uint8 or len(state.shape) != 1:
            raise TypeError(f"{name}: must be a row of bytes")
    if isinstance(states["torch"], torch.Tensor):
        torch.Generator().set_state(states["torch"])


def derive(seed: int, rank: int, step: int, device: torch.device) -> dict[str, Any]:
    """Gives the random states of a rank that has none saved: they follow from (seed, rank, step)."""
    before = capture(device)
    number = int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])
    try:
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        return capture(device)
    finally:
        restore(before, device)


def _plain(value: Any) -> Any:
    """Gives numpy's state without arrays; it takes lists as well."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
