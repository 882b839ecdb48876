"""What a checkpoint keeps of a learning rate schedule, whoever wrote it.

A checkpoint holds JSON and tensors and is never unpickled, while the `state_dict` of torch's schedulers holds
whatever their attributes are: `OneCycleLR` functions, `MultiStepLR` a Counter with whole numbers as keys, a nested
schedule's state. So a state is *plain* when saved: callables and foreign objects are left out, and what JSON lacks
is written as a dict of one marked key. When loaded, what was left out is taken from the schedule itself, which the
run has built anew from the same code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeAlias

from torch import Tensor

Plain: TypeAlias = "bool | int | float | str | Tensor | list[Plain] | dict[str, Plain] | None"

# The marked keys: a number that JSON lacks, by its name; a dict whose keys are not strings, as pairs.
NUMBER: Final = "__number__"
PAIRS: Final = "__pairs__"


class StatefulSchedule(Protocol):
    """A schedule that can be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Gives what the schedule needs to go on."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Takes what `state_dict` gave."""


class _NotPlainError(Exception):
    """A value that cannot be saved without pickling."""


def schedule_state(scheduler: StatefulSchedule) -> dict[str, Plain]:
    """Gives the state of a schedule as a tree of JSON values and tensors, sharing nothing with the schedule."""
    return _plain_items(scheduler.state_dict())


def load_schedule_state(scheduler: StatefulSchedule, state: Mapping[str, Plain]) -> None:
    """Restores what `schedule_state` gave, into a schedule that was built as the saved one was.

    Raises:
        ValueError: it is none of such a schedule, as far as can be said here.
    """
    for name in state:
        if callable(getattr(type(scheduler), name, None)):  # torch puts what it is given into the schedule's attributes
            raise ValueError(f"{name} is a method of {type(scheduler).__name__}, and no part of its state")
    own = scheduler.state_dict()
    absent = {key: value for key, value in own.items() if key not in state}
    scheduler.load_state_dict({**absent, **{key: _restored(value, own.get(key)) for key, value in state.items()}})


def _plain_items(values: Mapping[str, Any]) -> dict[str, Plain]:
    items = {}
    for key, value in values.items():
        try:
            items[key] = _plain(value)
        except _NotPlainError:
            continue
    return items


def _plain(value: object) -> Plain:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {NUMBER: str(float(value))}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return _plain_items(value)
        return {PAIRS: [[_plain(key), _plain(item)] for key, item in value.items()]}
    raise _NotPlainError


def _restored(value: Plain, own: object) -> object:
    """Gives a saved value in the form that the schedule's own value has."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        mates = own if isinstance(own, list | tuple) and len(own) == len(value) else [None] * len(value)
        items = [_restored(item, mate) for item, mate in zip(value, mates, strict=True)]
        return tuple(items) if isinstance(own, tuple) else items
    if not isinstance(value, dict):
        return value
    if NUMBER in value:
        return float(str(value[NUMBER]))
    return _restored_mapping(value, own if isinstance(own, dict) else {})


def _restored_mapping(value: dict[str, Plain], own: dict[Any, Any]) -> dict[Any, Any]:
    if PAIRS in value:
        pairs: Any = value[PAIRS]
        return type(own)({_restored(key, None): _restored(item, None) for key, item in pairs})
    absent = {key: item for key, item in own.items() if key not in value}
    return {**absent, **{key: _restored(item, own.get(key)) for key, item in value.items()}}
