"""One update as it was recorded, and as it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer_core_replay.digest import SHORT
from trainer_core_replay.recorded import Recorded, is_same
from trainer_core_replay.taking import QUANTITIES


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay first went another way.

    Attributes:
        step: the update; the one that it began from for the parameters it began with.
        quantity: one of `QUANTITIES`, or "end" for an update that the replay did not come to.
        recorded: what the run had.
        found: what the replay had.
        tensors: names of the parameters and buffers that differ.
        rank: the process that found it.
    """

    step: int
    quantity: str
    recorded: Any
    found: Any
    tensors: tuple[str, ...] = ()
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Compared:
    """An update that was compared.

    Attributes:
        step: the update.
        same: quantity to whether it is the same; those that were not recorded are not in it.
        difference: the first one, if any.
    """

    step: int
    same: Mapping[str, bool]
    difference: Difference | None = None


def compare(recorded: Recorded, found: Mapping[str, Any], names: Sequence[str], rank: int) -> Compared:
    """Compares an update with what was recorded of it.

    Args:
        recorded: what the journal holds.
        found: the values of the replay.
        names: of the model's parameters and buffers.
        rank: this process.
    """
    known = [name for name in QUANTITIES if name in recorded.values and name in found]
    same = {name: is_same(recorded.values[name], found[name]) for name in known}
    first = next((name for name in known if not same[name]), None)
    if first is None:
        return Compared(recorded.step, same)
    tensors = differing(recorded.values, found, names) if first == "parameters" else ()
    difference = Difference(recorded.step, first, recorded.values[first], found[first], tensors, rank)
    return Compared(recorded.step, same, difference)


def differing(recorded: Mapping[str, Any], found: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Gives the names of the tensors whose digests differ; none where the run had another number of them."""
    old, new = (_cut(str(values.get("tensors", ""))) for values in (recorded, found))
    if not len(old) == len(new) == len(names):
        return ()
    return tuple(name for name, one, other in zip(names, old, new, strict=True) if one != other)


def _cut(digests: str) -> list[str]:
    return [digests[place : place + SHORT] for place in range(0, len(digests), SHORT)]
