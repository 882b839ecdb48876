"""Tables on the command line: drawn on a terminal, plain columns anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer_core import printable


def show(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows below the names of their columns; control characters in them are escaped."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(names, cells)
        return
    widths = [max(len(row[place]) for row in [names, *cells]) for place in range(len(names))]
    for row in [names, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _draw(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in names:
        table.add_column(name, overflow="fold")  # nothing is cut off
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as text: what a checkpoint says is no markup
    Console().print(table)
