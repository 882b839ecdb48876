"""What a journal holds of the updates of a run.

An update that was done more than once, because the run was killed or interrupted and went on from an earlier
checkpoint, has several records; the last one written counts, and where they disagree that is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer_core import journal_records
from trainer_core_replay.taking import KIND, QUANTITIES


@dataclass(slots=True)
class Recorded:
    """What is known of one update.

    Attributes:
        step: the update; 0 for what the run began with.
        ranks: processes of the run.
        values: quantity to what the last run that recorded it recorded.
        runs: quantity to that run.
        others: quantity to (run, value) of earlier runs that recorded another one.
    """

    step: int
    ranks: int
    values: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    others: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)

    def add(self, run: str, values: dict[str, Any]) -> None:
        """Takes over a later record."""
        for name, value in values.items():
            if name in self.values and not is_same(self.values[name], value):
                self.others.setdefault(name, []).append((self.runs[name], self.values[name]))
            self.values[name], self.runs[name] = value, run

    def disagreements(self) -> Iterator[str]:
        """Says where runs recorded different things of this update."""
        for name in QUANTITIES:
            for run, value in self.others.get(name, []):
                if not is_same(value, self.values[name]):
                    yield (
                        f"update {self.step}: run {run} recorded other {name} than run {self.runs[name]}, {value} and "
                        f"{self.values[name]}; the latter is compared with."
                    )


def read_recorded(path: Path) -> dict[int, Recorded]:
    """Gives what a journal file holds, by update; records that are no digests of ours are passed over."""
    found: dict[int, Recorded] = {}
    for record in journal_records(path, KIND):
        step, run, ranks, values = (record.get(name) for name in ("step", "run", "ranks", "values"))
        if not (isinstance(step, int) and isinstance(ranks, int) and isinstance(values, dict)):
            continue
        one = found.setdefault(step, Recorded(step, ranks))
        one.ranks = ranks
        one.add(str(run), values)
    return found


def is_same(one: Any, other: Any) -> bool:
    """Tells whether two recorded values are the same to the bit."""
    return repr(one) == repr(other)
