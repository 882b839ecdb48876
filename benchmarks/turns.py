"""Turns: contenders take them one after another, and what is compared was measured side by side.

A shared machine is faster in one minute than in the next. In each round every contender has one short turn, in an
order that rotates, and a ratio is made from two turns of one round; the median over the rounds is the result, and
the quartiles say how far to trust it.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Turns = Mapping[str, list[float]]
GROUP: Final = 5


@dataclass(frozen=True)
class Estimate:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Estimate:
        """Gives median and quartiles of at least one value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> Turns:
    """Lets each contender (a function that gives CPU seconds) have one turn a round; gives the seconds by name.

    One round before the others is not counted: it pays for what is imported or compiled at first use. What it leaves
    in memory is frozen, so that no turn pays for a search of all of torch for garbage.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            gc.collect()
            spent = contenders[name]()
            if number:
                seconds[name].append(spent)
        if number == 0:
            gc.freeze()
    gc.unfreeze()
    return seconds


def ratio(turns: Turns, name: str, base: str) -> Estimate:
    """Gives the ratio of `name` to `base`, paired by round."""
    return Estimate.of([mine / theirs for mine, theirs in zip(turns[name], turns[base], strict=True)])


def difference(turns: Turns, name: str, base: str, scale: float = 1e6) -> Estimate:
    """Gives the difference of `name` and `base`, in microseconds unless scaled otherwise.

    What disturbs a turn makes it longer, never shorter. A difference is far smaller than what it is a difference of,
    so that the fastest of `GROUP` neighbouring turns of each are compared, not single ones.
    """
    mine, theirs = _fastest(turns[name]), _fastest(turns[base])
    return Estimate.of([(one - other) * scale for one, other in zip(mine, theirs, strict=True)])


def _fastest(seconds: list[float]) -> list[float]:
    return [min(seconds[start : start + GROUP]) for start in range(0, len(seconds), GROUP)]
