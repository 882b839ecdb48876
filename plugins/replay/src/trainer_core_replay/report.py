"""What a replay found, as an object and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer_core_replay.comparing import Compared, Difference
from trainer_core_replay.taking import QUANTITIES

NAMED_TENSORS: Final = 3
"""Parameters that are named; there may be thousands that differ."""
NAMED_NOTES: Final = 10
"""Disagreements of runs that are told one by one."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a replay found; equal on every rank.

    Attributes:
        output_dir: folder of the run.
        from_step: update that it began from.
        last_step: last update that was to be compared.
        rows: the updates that were compared, those of all ranks.
        difference: the first difference; None when there is none.
        notes: what a reader should know besides.
    """

    output_dir: str
    from_step: int
    last_step: int
    rows: tuple[Compared, ...]
    difference: Difference | None
    notes: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether everything that was recorded came out again, to the bit."""
        return self.difference is None

    def __str__(self) -> str:
        span = f"{self.output_dir}: updates {self.from_step + 1} to {self.last_step}, repeated from {self._beginning}"
        return "\n".join([span, "", *self._table(), "", self.verdict, *_shortened(self.notes)])

    @property
    def verdict(self) -> str:
        """One sentence: the same, or the first difference."""
        found = self.difference
        if found is None:
            return f"The same: {len(self.rows)} recorded update(s), all that was recorded of them, to the bit."
        if found.quantity == "end":
            return f"The first difference: update {found.step}: {found.recorded} in the run; now {found.found}."
        where = f" on rank {found.rank}" if found.rank else ""
        which = f" of {_named(found.tensors)}" if found.tensors else ""
        values = f"recorded {_shown(found.recorded)}, now {_shown(found.found)}"
        if found.step == self.from_step:
            return f"The first difference: before update {found.step + 1}{where}, {found.quantity}{which}: {values}."
        return f"The first difference: update {found.step}{where}, {found.quantity}{which}: {values}."

    @property
    def _beginning(self) -> str:
        return f"checkpoint {self.from_step}" if self.from_step else "the beginning"

    def _table(self) -> list[str]:
        lines = [["update", *QUANTITIES]]
        for row in merged(self.rows):
            lines.append([str(row.step), *(_CELLS[row.same.get(name)] for name in QUANTITIES)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


_CELLS: Final = {None: "-", True: "same", False: "differs"}


def merged(rows: Sequence[Compared]) -> list[Compared]:
    """Gives one row an update: a quantity is the same where it is on every rank."""
    found: dict[int, dict[str, bool]] = {}
    for row in sorted(rows, key=lambda row: row.step):
        same = found.setdefault(row.step, {})
        for name, is_so in row.same.items():
            same[name] = same.get(name, True) and is_so
    return [Compared(step, same) for step, same in found.items()]


def first_difference(rows: Sequence[Compared]) -> Difference | None:
    """Gives the first difference of all ranks: by update, then by quantity, then by rank."""
    found = [row.difference for row in rows if row.difference is not None]
    return min(found, key=lambda one: (one.step, QUANTITIES.index(one.quantity), one.rank), default=None)


def _named(tensors: Sequence[str]) -> str:
    more = len(tensors) - NAMED_TENSORS
    return ", ".join(tensors[:NAMED_TENSORS]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    return f"[{value}]" if isinstance(value, str) and " " in value else str(value)


def _shortened(notes: Sequence[str]) -> list[str]:
    more = len(notes) - NAMED_NOTES
    return [*notes[:NAMED_NOTES], *([f"… and {more} more notes."] if more > 0 else [])]
