"""Results: rows of one table, printed and written as JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.turns import Estimate


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        case: what is done.
        contender: who does it.
        unit: what the figure is: "x bare", "us", "MB", "calls a step".
        value: median with quartiles; None where it could not be measured, for the reason in `note`.
        target: the figure to stay below or at; None where none is set.
        note: what else there is to say.
    """

    case: str
    contender: str
    unit: str
    value: Estimate | None
    target: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        if self.target is None or self.value is None:
            return ""
        return "yes" if self.value.median <= self.target else "no"


HEADINGS = ("case", "contender", "figure", "quartiles", "unit", "target", "met", "note")


def cells(row: Row) -> tuple[str, ...]:
    """Gives the row as text."""
    if row.value is None:
        return (row.case, row.contender, "not available", "", row.unit, _text(row.target), "", row.note)
    value = row.value
    spread = "" if value.low == value.high else f"{_text(value.low)} .. {_text(value.high)}"
    return (row.case, row.contender, _text(value.median), spread, row.unit, _text(row.target), row.verdict, row.note)


def machine() -> dict[str, str | int]:
    """Gives what the figures were measured on."""
    names = ("torch", "accelerate", "pydantic", "pluggy", "trainer-core")
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "threads": 1,
        **{name: version(name) for name in names},
    }


def print_table(rows: list[Row], *, markdown: bool) -> None:
    """Prints the rows as a rich table, or as markdown."""
    if markdown:
        for line in (HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)):
            print("| " + " | ".join(line) + " |")
        return
    table = Table(*HEADINGS, caption=", ".join(f"{name} {value}" for name, value in machine().items()))
    case = ""
    for row in rows:
        if row.case != case and case:
            table.add_section()
        texts = cells(row)
        table.add_row("" if row.case == case else texts[0], *texts[1:])
        case = row.case
    console = Console()
    Console(width=max(console.width, 160)).print(table)


def write_json(rows: list[Row], path: Path) -> None:
    """Writes the rows, with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"measured_on": machine(), "rows": [{**asdict(row), "met": row.verdict} for row in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _text(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
