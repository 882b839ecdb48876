"""A run on a terminal: the plan, rows that stay, and two live lines at the bottom.

    training        ━━━━━━━━━━━━━━━━━━━╸────────────  312/540  epoch 3.47/6  0:12  0:09 left
                    loss 0.1234 █▇▅▄▃▂▂▁  lr 8.33e-04  grad norm 1.23  4,210 samples/s

The clock's thread draws. Training only leaves rows behind: of those of one kind that came between two drawings the
newest is shown, evaluations and saves all.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

from trainer_core.console.moment import Moment, moment_of
from trainer_core.console.pace import Pace
from trainer_core.console.redirection import Redirection
from trainer_core.console.report import Report
from trainer_core.console.sparkline import ASCII_LEVELS, BLOCKS, Trend
from trainer_core.console.wording import Kind, can_write, parts_of, spelled
from trainer_core.phases import Phase

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from trainer_core.trainer import Trainer

ROW_SECONDS: Final = 1.0
"""Rows of training that stay are at least so far apart."""

ACTIVITY_WIDTH: Final = 15
WIDEST_BAR: Final = 40
NARROWEST_BAR: Final = 10

ECHO_WIDTH: Final = 5
"""Columns that the live lines leave free: a Ctrl-C or two, which the terminal echoes there, must not wrap the line."""

STYLES: Final[Mapping[str, str]] = {"plain": "bold", "good": "bold green", "pause": "bold yellow", "bad": "bold red"}
PHASE_STYLES: Final[Mapping[Phase, str]] = {Phase.EVAL: "bold magenta", Phase.SAVE: "bold yellow"}
KIND_STYLES: Final[Mapping[Kind, str]] = {"eval": "magenta", "save": "yellow"}


class TerminalDisplay:
    """Shows a run on the terminal that standard output is.

    Args:
        trainer: whose run it is.
        pace: its stopwatch.
    """

    def __init__(self, trainer: Trainer, pace: Pace) -> None:
        self._trainer = trainer
        self._pace = pace
        self._console = _rich_console()
        self._live: Live | None = None
        self._redirection = Redirection(self._show_foreign)
        self._lock = threading.Lock()
        self._waiting: list[tuple[Kind, Mapping[str, Any]]] = []
        self._places: dict[Kind, int] = {}
        self._newest: Mapping[str, Any] = {}
        self._trend = Trend()
        self._num_rows_seen = len(trainer.state.log_history)
        self._row_shown_at = -ROW_SECONDS

    def open(self, report: Report | None) -> None:
        """Shows the plan and begins the live lines."""
        from rich.live import Live

        if report is not None:
            self._console.print(report_view(report, self._console.encoding))
            self._console.print()
        self._live = Live(
            get_renderable=self._view,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)
        self._redirection.begin()

    def row(self, kind: Kind, logs: Mapping[str, Any]) -> None:
        """Leaves a row for the next drawing."""
        with self._lock:
            if kind == "train":
                self._newest = logs
            if kind in self._places:
                self._waiting[self._places[kind]] = (kind, logs)
                return
            if kind in ("train", "log"):
                self._places[kind] = len(self._waiting)
            else:
                self._places.clear()  # what follows an evaluation stays below it
            self._waiting.append((kind, logs))

    def tick(self) -> None:
        """Shows rows that wait and draws the live lines anew."""
        self._pace.observe(self._trainer.state.global_step, self._trainer.state.num_samples_seen)
        history, seen = self._trainer.state.log_history, self._num_rows_seen
        self._num_rows_seen = len(history)
        self._trend.extend(float(row["loss"]) for row in history[seen : self._num_rows_seen] if "loss" in row)
        self._show_rows(self._take_rows(perf_counter()))
        if self._live is not None:
            self._live.refresh()

    def close(self) -> None:
        """Shows the last rows, takes the live lines away and gives the terminal back."""
        live, self._live = self._live, None
        if live is None:
            return
        try:
            self._show_rows(self._take_rows(None))
        finally:
            self._redirection.end()
            live.stop()

    def summary(self, report: Report) -> None:
        """Shows how the run ended."""
        self._console.print()
        self._console.print(report_view(report, self._console.encoding))

    def _take_rows(self, now: float | None) -> list[tuple[Kind, Mapping[str, Any]]]:
        """Gives the rows to show; rows of training alone wait until the last is old enough."""
        with self._lock:
            is_urgent = len(self._places) < len(self._waiting)
            if now is not None and not is_urgent and now - self._row_shown_at < ROW_SECONDS:
                return []
            rows, self._waiting = self._waiting, []
            self._places.clear()
        if rows and now is not None:
            self._row_shown_at = now
        return rows

    def _show_rows(self, rows: list[tuple[Kind, Mapping[str, Any]]]) -> None:
        for kind, logs in rows:
            self._console.print(row_view(kind, logs, self._trainer.state.max_steps), soft_wrap=True)

    def _show_foreign(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text.from_ansi(text), soft_wrap=True)

    def _view(self) -> Group:
        moment = moment_of(self._trainer, self._pace, self._newest)
        is_rich = can_write(BLOCKS, self._console.encoding)
        curve = self._trend.curve(BLOCKS if is_rich else ASCII_LEVELS)
        return live_view(moment, curve, self._console.width - ECHO_WIDTH, is_ascii=not is_rich)


def live_view(moment: Moment, curve: str, width: int, *, is_ascii: bool = False) -> Group:
    """Gives the live lines in `width` columns; what does not fit is left out, the bar last."""
    from rich.console import Group

    overflow: Literal["crop", "ellipsis"] = "crop" if is_ascii else "ellipsis"
    first, second = _progress_line(moment, width, is_ascii=is_ascii), _values_line(moment, curve)
    if second.cell_len > width:
        second = _values_line(moment, "")
    for line in (first, second):
        line.no_wrap = True
        line.truncate(width, overflow=overflow)
    return Group(first, second)


def _progress_line(moment: Moment, width: int, *, is_ascii: bool) -> Text:
    from rich.text import Text

    tail = [("bold", moment.steps), ("", moment.epochs), ("dim", moment.elapsed_clock), ("cyan", moment.time_left)]
    tail = [(style, text) for style, text in tail if text]
    room = width - ACTIVITY_WIDTH - NARROWEST_BAR - 1
    while len(tail) > 1 and sum(len(text) + 2 for _, text in tail) > room:
        tail.pop(1)
    bar_width = min(width - ACTIVITY_WIDTH - 1 - sum(len(text) + 2 for _, text in tail), WIDEST_BAR)
    line = Text().append(f"{moment.activity:<{ACTIVITY_WIDTH}} ", PHASE_STYLES.get(moment.phase, "bold cyan"))
    line.append_text(_bar(moment.progress, max(bar_width, 0), is_ascii=is_ascii))
    for style, text in tail:
        line.append("  ").append(text, style)
    return line


def _values_line(moment: Moment, curve: str) -> Text:
    from rich.text import Text

    line = Text(" " * (ACTIVITY_WIDTH + 1))
    if moment.stopping:
        line.append(f"{moment.stopping} asks to stop  ", "bold yellow")
    for name, text in moment.parts:
        line.append(f"{name} ", "dim").append(text)
        if name == "loss" and curve:
            line.append(f" {curve}", "cyan")
        line.append("  ")
    return line.append(moment.rate, "dim")


def row_view(kind: Kind, logs: Mapping[str, Any], max_steps: int) -> Text:
    """Gives a row that stays."""
    from rich.text import Text

    style = KIND_STYLES.get(kind, "")
    text = Text()
    text.append("step ", "dim")
    text.append(f"{logs.get('step', 0):>{len(f'{max_steps:,}')},}", "bold")
    text.append(f"  epoch {logs.get('epoch', 0.0):<6.2f}", "dim")
    text.append(f"  {kind:<5}", style or "dim")
    for name, value in parts_of(logs):
        text.append(f"  {name} ", style or "dim")
        text.append(f"{value:<8}")
    text.rstrip()
    return text


def report_view(report: Report, encoding: str) -> Group:
    """Gives a headline with labelled lines below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table: Table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in report.lines:
        table.add_row(f"  {label}", Text(spelled(text, encoding)))
    return Group(Text(spelled(report.title, encoding), STYLES[report.mood]), table)


def _bar(progress: float, width: int, *, is_ascii: bool) -> Text:
    from rich.text import Text

    full, half, rest = ("#", "", ".") if is_ascii else ("━", "╸", "─")
    halves = int(progress * width * 2)
    done = full * (halves // 2) + (half if halves % 2 else "")
    return Text.assemble((done, "cyan"), (rest * (width - len(done)), "bright_black"))


def _rich_console() -> RichConsole:
    """Gives rich's own console, which the user's `rich.print` uses too, where it writes to standard output."""
    import rich
    from rich.console import Console as RichConsole

    shared = rich.get_console()
    is_ours = shared.file is sys.stdout and shared.is_terminal and not shared.record
    return shared if is_ours else RichConsole()
