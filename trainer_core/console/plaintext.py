"""A run in plain lines, for files, pipes and logs: no control characters, and ASCII where only that can be written.

    step  50/540  epoch 0.56  train  loss 1.402  lr 8.20e-04  4,210 samples/s  0:09 left
    step 100/540  epoch 1.11  eval   loss 0.812  accuracy 0.8121  in 0.31 s
    still evaluating 0:30: step 200/540, epoch 2.22, 0:05 left

A row of training says how fast the run goes and how long it takes, as of the clock's last tick. The last line here is
the clock's, when nothing was written for long.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TextIO

from trainer_core.console.moment import moment_of
from trainer_core.console.pace import Pace
from trainer_core.console.report import Report
from trainer_core.console.wording import Kind, joined, parts_of, printable, spelled

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

BATCH_SECONDS: Final = 0.25
"""Rows of training that come faster are written together."""


class PlainWriter:
    """Writes lines as the stream can take them, whole and at once.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None)

    def write(self, *lines: str) -> None:
        """Writes each text as one line."""
        if lines:
            self._stream.write("".join([f"{spelled(printable(line), self._encoding)}\n" for line in lines]))
            self._stream.flush()

    def report(self, report: Report) -> None:
        """Writes a headline with labelled lines below it."""
        width = max((len(label) for label, _ in report.lines), default=0)
        self.write(report.title, *(f"  {label:<{width}}  {text}" for label, text in report.lines))


class PlainDisplay:
    """Shows a run line by line.

    Rows of training that follow each other within `BATCH_SECONDS` are left to the clock; the others are written at
    once.

    Args:
        trainer: whose run it is.
        pace: its stopwatch.
        stream: where to write.
        heartbeat_seconds: a line at least so often.
    """

    def __init__(self, trainer: Trainer, pace: Pace, stream: TextIO, heartbeat_seconds: float) -> None:
        self._trainer = trainer
        self._pace = pace
        self._writer = PlainWriter(stream)
        self._heartbeat_seconds = heartbeat_seconds
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Kind, Mapping[str, Any]]] = deque()
        self._speed = ""
        self._wrote_at = perf_counter()

    def open(self, report: Report | None) -> None:
        """Writes the plan."""
        if report is not None:
            self._writer.report(report)

    def row(self, kind: Kind, logs: Mapping[str, Any]) -> None:
        """Writes a row, or leaves it to the clock."""
        self._waiting.append((kind, logs))
        if kind != "train" or perf_counter() - self._wrote_at >= BATCH_SECONDS:
            self._write_waiting()

    def tick(self) -> None:
        """Measures, writes rows that wait, and gives a sign of life when nothing was written for long."""
        self._pace.observe(self._trainer.state.global_step, self._trainer.state.num_samples_seen)
        moment = moment_of(self._trainer, self._pace)
        self._speed = "".join(f"  {text}" for text in (moment.rate, moment.time_left) if text)
        self._write_waiting()
        if perf_counter() - self._wrote_at >= self._heartbeat_seconds:
            told = (f"step {moment.steps}", moment.epochs, moment.rate, moment.time_left)
            self._writer.write(f"still {moment.activity}: {', '.join(text for text in told if text)}")
            self._wrote_at = perf_counter()

    def close(self) -> None:
        """Writes rows that wait."""
        self._write_waiting()

    def summary(self, report: Report) -> None:
        """Writes how the run ended."""
        self._writer.report(report)

    def _write_waiting(self) -> None:
        planned, lines = self._trainer.state.max_steps, []
        with self._lock:
            while self._waiting:
                kind, logs = self._waiting.popleft()
                lines.append(row_line(kind, logs, planned) + (self._speed if kind == "train" else ""))
            if lines:
                self._writer.write(*lines)
                self._wrote_at = perf_counter()


def row_line(kind: Kind, logs: Mapping[str, Any], max_steps: int) -> str:
    """Gives a row in one line."""
    planned = f"{max_steps:,}"
    step, epoch = logs.get("step", 0), logs.get("epoch", 0.0)
    return f"step {step:>{len(planned)},}/{planned}  epoch {epoch:.2f}  {kind:<5}  {joined(parts_of(logs))}".rstrip()
