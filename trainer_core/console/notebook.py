"""A run in a notebook: one table that is brought up to date where it stands."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Final

from trainer_core.console.moment import Moment, moment_of
from trainer_core.console.pace import Pace
from trainer_core.console.report import Report
from trainer_core.console.wording import Kind, parts_of

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

LISTED_ROWS: Final = 50
"""Rows in the table; older ones make room, so that an update does not grow with the run."""


def is_notebook() -> bool:
    """Tells whether this is the kernel of a notebook; imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class NotebookDisplay:
    """Shows a run below the cell that trains.

    Args:
        trainer: whose run it is.
        pace: its stopwatch.
    """

    def __init__(self, trainer: Trainer, pace: Pace) -> None:
        self._trainer = trainer
        self._pace = pace
        self._rows: deque[tuple[Kind, Mapping[str, Any]]] = deque(maxlen=LISTED_ROWS)
        self._handle: Any = None

    def open(self, report: Report | None) -> None:
        """Shows the plan and an empty table."""
        from IPython.display import HTML, display

        if report is not None:
            display(HTML(report_html(report)))
        self._handle = display(HTML(self._html()), display_id=True)

    def row(self, kind: Kind, logs: Mapping[str, Any]) -> None:
        """Leaves a row for the next update."""
        self._rows.append((kind, logs))

    def tick(self) -> None:
        """Brings the table up to date."""
        from IPython.display import HTML

        self._pace.observe(self._trainer.state.global_step, self._trainer.state.num_samples_seen)
        if self._handle is not None:
            self._handle.update(HTML(self._html()))

    def close(self) -> None:
        """Brings the table up to date once more; it stays."""
        if self._handle is not None:
            self.tick()
            self._handle = None

    def summary(self, report: Report) -> None:
        """Shows how the run ended."""
        from IPython.display import HTML, display

        display(HTML(report_html(report)))

    def _html(self) -> str:
        return progress_html(moment_of(self._trainer, self._pace), list(self._rows))


def progress_html(moment: Moment, rows: Iterable[tuple[Kind, Mapping[str, Any]]]) -> str:
    """Gives the bar and the table of rows, a column for each name."""
    told = (moment.activity, moment.steps, moment.epochs, moment.rate, moment.elapsed_clock, moment.time_left)
    bar = f'<progress value="{moment.step}" max="{moment.max_steps}" style="width: 20em"></progress>'
    tables = [({part.name: part.text for part in parts_of(logs)}, kind, logs) for kind, logs in rows]
    names = list(dict.fromkeys(name for values, _, _ in tables for name in values))
    lines = [
        [f"{logs.get('step', 0):,}", kind, *(values.get(name, "") for name in names)] for values, kind, logs in tables
    ]
    return f"<div>{bar} {escape('  '.join(text for text in told if text))}</div>" + (
        table_html(["step", "", *names], lines) if lines else ""
    )


def report_html(report: Report) -> str:
    """Gives a headline with labelled lines below it."""
    return f"<b>{escape(report.title)}</b>" + table_html([], [list(line) for line in report.lines])


def table_html(head: list[str], lines: Iterable[list[str]]) -> str:
    """Gives a table, everything in it as text."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    rows = ("".join(f'<td style="text-align: left">{escape(cell)}</td>' for cell in line) for line in lines)
    body = "".join(f"<tr>{cells}</tr>" for cells in rows)
    return f"<table>{f'<tr>{top}</tr>' if head else ''}{body}</table>"
