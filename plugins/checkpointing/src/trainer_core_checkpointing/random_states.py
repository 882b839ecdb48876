"""The random states of one rank: python, numpy's global one, torch on the CPU and on this rank's device."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


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
