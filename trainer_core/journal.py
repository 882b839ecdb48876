"""The journal: one line of JSON for each transition, flushed as it goes.

A line is written when a phase is left:

    {"phase": "STEP", "first_step": 1, "step": 50, "seconds": 0.31, "next": "EVAL", "signal": "EVAL",
     "by": "eval_strategy", "why": "every 50 updates", "rank": 0, "time": 1767225600.0, "run": "9f2c61d0"}

A line with a `kind` is a record: what a plugin notes beside the transitions (a checkpoint that was passed over, digests
of an update), with its own fields.

Runs of plain STEPs are folded into one line (`first_step` to `step`; `first_step` is the larger where no update was
done). The file is `journal.jsonl` in `output_dir` (`journal-rank<r>.jsonl` on other ranks); a resumed run appends to
it. A line that a killed process left half is passed over by `read`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, time
from typing import Any, TextIO
from uuid import uuid4

from trainer_core.errors import SettingsError
from trainer_core.files import open_here
from trainer_core.phases import Phase, Signal
from trainer_core.settings.secrecy import mask_text
from trainer_core.state import Request

logger = logging.getLogger("trainer_core.journal")


@dataclass(frozen=True, slots=True)
class Entry:
    """A transition: `phase` was left after update `step` for `next`, because `by` raised `signal`."""

    phase: str
    first_step: int
    step: int
    seconds: float
    next: str
    signal: str
    by: str
    why: str
    rank: int
    time: float
    run: str


class Journal:
    """Keeps the transitions of one run, and the seconds spent in each phase.

    Args:
        path: the file, or None to keep the account in memory only.
        rank: this process.
    """

    def __init__(self, path: Path | None, rank: int = 0) -> None:
        self.path = path
        self.rank = rank
        self.run = uuid4().hex[:8]
        self.entries: list[Entry] = []
        self.seconds: dict[Phase, float] = {}
        self._entered = perf_counter()
        self._first_step: int | None = None
        self._file: TextIO | None = None

    def open(self) -> None:
        """Starts the clock, and the file where there is one.

        Raises:
            SettingsError: there is no writing to the folder.
        """
        self._entered = perf_counter()
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_here(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self._file = os.fdopen(descriptor, "a", encoding="utf-8")
            if _ends_in_half_a_line(self.path):
                self._file.write("\n")
        except OSError as error:
            problem = f"cannot be written to, got {str(self.path.parent)!r} ({error})"
            raise SettingsError([f"output_dir: {problem}. Name a folder that is there or can be made."]) from error

    def left(self, phase: Phase, step: int, target: Phase | None, signal: Signal, request: Request | None) -> None:
        """Accounts for `phase`, which was left after update `step`. Runs of STEP are folded by not calling this."""
        now = perf_counter()
        seconds, self._entered = now - self._entered, now
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        entry = Entry(
            phase=phase.name,
            first_step=step if self._first_step is None else self._first_step,
            step=step,
            seconds=round(seconds, 6),
            next="" if target is None else target.name,
            signal=signal.name,
            by="loop" if request is None else request.by,
            why="nothing else was asked for" if request is None else mask_text(request.why),
            rank=self.rank,
            time=round(time(), 3),
            run=self.run,
        )
        self._first_step = step + 1 if target is Phase.STEP else None
        self.entries.append(entry)
        self._write({name: getattr(entry, name) for name in Entry.__slots__})

    def record(self, kind: str, step: int, fields: Mapping[str, Any]) -> None:
        """Writes a record of `kind` with `fields`, which JSON can hold; texts among them are masked like reasons."""
        told = {name: mask_text(value) if isinstance(value, str) else value for name, value in fields.items()}
        common = {"step": step, "rank": self.rank, "time": round(time(), 3), "run": self.run}
        self._write({"kind": kind, **common, **told})

    def failed(self, phase: Phase, step: int, error: BaseException) -> None:
        """Accounts for a phase that `error` ended."""
        self.left(phase, step, None, Signal.STOP, Request(Signal.STOP, type(error).__name__, str(error)))

    def close(self) -> None:
        """Closes the file; the entries stay readable."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # said when the line could not be written
                file.close()

    def _write(self, fields: Mapping[str, Any]) -> None:
        if self._file is not None:
            line = json.dumps(fields, ensure_ascii=False)
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:  # an account that cannot be kept ends no run and hides no other error
                logger.warning("%s: cannot be written, %s. The journal goes on in memory.", self.path, error)
                self.close()


def read(path: Path) -> Iterator[Entry]:
    """Gives the entries of a journal file, oldest first; half lines and lines of other kinds are passed over."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                fields: Any = json.loads(line)
                yield Entry(**fields)
            except (ValueError, TypeError):
                continue


def journal_records(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Gives the records of `kind` in a journal file, oldest first; half lines are passed over, no file has none."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            if isinstance(fields, dict) and fields.get("kind") == kind:
                yield fields


def last_run(path: Path) -> list[Entry]:
    """Gives the entries of the last run in a journal file and of the runs that it resumed; none without a file."""
    entries = list(read(path)) if path.is_file() else []
    starts = [place for place, entry in enumerate(entries) if entry.phase == Phase.INIT.name and entry.step == 0]
    return entries[starts[-1] :] if starts else entries


def explain(entries: list[Entry], step: int) -> str:
    """Says in words what happened at update `step` and who asked for it."""
    told: list[str] = []
    for entry in entries:
        if entry.phase == Phase.STEP.name and entry.first_step <= step <= entry.step:
            told.append(_updates_in_words(entry))
        if entry.step == step and entry.next != Phase.STEP.name:
            told.append(_transition_in_words(entry))
    if not told:
        return f"Step {step}: the journal has no transition there."
    return f"Step {step}: " + " ".join(told)


def _updates_in_words(entry: Entry) -> str:
    if entry.first_step == entry.step:
        return f"update {entry.step} was done."
    return f"updates {entry.first_step} to {entry.step} were done in {entry.seconds:.3g} s."


def _transition_in_words(entry: Entry) -> str:
    if not entry.next:
        is_in_order = entry.phase == Phase.STOP.name and entry.by == "loop"
        return "The run ended." if is_in_order else f"The run ended in phase {entry.phase}: {entry.by}: {entry.why}."
    if entry.phase == Phase.INIT.name and entry.step:
        return "The run was resumed."
    if entry.by == "loop":
        return f"{entry.why[0].upper()}{entry.why[1:]}."
    return f"{_VERBS[entry.next]}, asked by {entry.by}: {entry.why}."


_VERBS: Mapping[str, str] = {
    Phase.EVAL.name: "Evaluated",
    Phase.SAVE.name: "Saved",
    Phase.STOP.name: "Stopped",
    Phase.EPOCH.name: "Left the epoch",
}


def _ends_in_half_a_line(path: Path) -> bool:
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
