"""A curve in one line of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII_LEVELS: Final = "_.-:=+*#"
"""What stands for `BLOCKS` where they cannot be shown; eight levels as well."""


def sparkline(values: Sequence[float], width: int = 40, *, levels: str = BLOCKS) -> str:
    """Gives at most `width` characters, one a value or one for the mean of neighbouring values.

    The lowest value gets the first of `levels`, the highest the last; a blank stands for what is not finite.
    """
    if width < 1:
        return ""
    means = _shortened(values, width)
    finite = [value for value in means if math.isfinite(value)]
    if not finite:
        return " " * len(means)
    low, span = min(finite), max(finite) - min(finite)
    if not math.isfinite(span) or span == 0:
        return "".join(levels[0] if math.isfinite(value) else " " for value in means)
    top = len(levels) - 1
    return "".join(levels[round((value - low) / span * top)] if math.isfinite(value) else " " for value in means)


def _shortened(values: Sequence[float], width: int) -> list[float]:
    """Gives the means of `width` runs of `values` that are as equally long as can be."""
    if len(values) <= width:
        return list(values)
    ends = [len(values) * place // width for place in range(width + 1)]
    return [_mean(values[start:end]) for start, end in pairwise(ends)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


class Trend:
    """A growing series kept as at most `2 * width` means of equally many values; its cost does not grow.

    Args:
        width: characters of its curve.
    """

    def __init__(self, width: int = 16) -> None:
        self.width = width
        self._means: list[float] = []
        self._values_a_mean = 1
        self._open: list[float] = []

    def extend(self, values: Iterable[float]) -> None:
        """Adds `values` at the end."""
        for value in values:
            self._open.append(value)
            if len(self._open) == self._values_a_mean:
                self._means.append(_mean(self._open))
                self._open.clear()
            if len(self._means) == 2 * self.width:
                self._means = [_mean(self._means[place : place + 2]) for place in range(0, 2 * self.width, 2)]
                self._values_a_mean *= 2

    def curve(self, levels: str = BLOCKS) -> str:
        """Gives the series as a sparkline; empty for fewer than two values."""
        if len(self._means) < 2:
            return ""
        return sparkline(self._means, self.width, levels=levels)
