"""The plugin: what the console is told of a run, and the display that suits standard output."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import Field

from trainer_core.console.display import Clock, Display
from trainer_core.console.notebook import NotebookDisplay, is_notebook
from trainer_core.console.pace import Pace
from trainer_core.console.plaintext import PlainDisplay, PlainWriter
from trainer_core.console.report import Record, closing, opening
from trainer_core.console.sparkline import ASCII_LEVELS, BLOCKS
from trainer_core.console.wording import can_write, in_seconds, joined, kind_of, parts_of
from trainer_core.hookspecs import hookimpl
from trainer_core.phases import Phase
from trainer_core.settings.change import Change
from trainer_core.settings.section import Section

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.console")

Mode = Literal["terminal", "plain", "notebook"]


class ConsoleSettings(Section):
    """What the console shows, and how often."""

    on_by_default: ClassVar[bool] = True
    flat: ClassVar[Mapping[str, str]] = {"disable_tqdm": "disable_tqdm"}
    when_changed: ClassVar[Mapping[str, Change]] = dict.fromkeys(
        ("mode", "disable_tqdm", "refresh_seconds", "heartbeat_seconds", "show_plan", "show_summary"), Change.free()
    )

    mode: Literal["auto", "terminal", "plain", "notebook", "off"] = "auto"
    """Live lines, plain lines, a notebook's table, nothing, or what suits standard output."""
    disable_tqdm: bool | None = None
    """True for plain lines wherever the output goes; None and False leave that to `mode`."""
    refresh_seconds: float = Field(0.25, gt=0)
    """Seconds between two refreshes of live output."""
    heartbeat_seconds: float = Field(30.0, gt=0)
    """In plain output, seconds without a line after which one says that the run is alive."""
    show_plan: bool = True
    """Show the plan before the run."""
    show_summary: bool = True
    """Show the outcome after the run."""

    def contradictions(self, args: TrainingArguments) -> Iterable[str]:
        """Gives what cannot be meant together."""
        if self.disable_tqdm and self.mode in ("terminal", "notebook"):
            yield f"disable_tqdm: contradicts console.mode={self.mode!r}, got True. Leave one of them out."


class Console:
    """Shows runs.

    Args:
        settings: what to show.
    """

    settings_type: ClassVar[type[Section]] = ConsoleSettings
    fires_in_replay: ClassVar[bool] = False
    critical: ClassVar[bool] = False

    def __init__(self, settings: ConsoleSettings) -> None:
        self.settings = settings
        self._record = Record()
        self._pace = Pace()
        self._display: Display | None = None
        self._clock: Clock | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        """Shows the plan and begins to show progress."""
        if trainer.running is None or not self._is_shown(trainer):
            return
        state, plan = trainer.state, trainer.last_plan
        self._record.first_step = state.global_step
        if trainer.resumed_from is not None:
            self._record.checkpoint, self._record.checkpoint_step = trainer.resumed_from, state.global_step
        self._pace = Pace(
            step=state.global_step,
            samples=state.num_samples_seen,
            max_steps=state.max_steps,
            evaluations=plan.steps_of("evaluation") if plan is not None else (),
            saves=plan.steps_of("save") if plan is not None else (),
        )
        self._display = self._new_display(trainer)
        trainer.running.undo.callback(self._close)  # also when a teardown before ours fails
        try:
            self._display.open(opening(trainer, self._record) if self.settings.show_plan else None)
        except Exception:
            self._close()
            raise
        self._clock = Clock(self._display.tick, self.settings.refresh_seconds)
        self._clock.start()

    def on_phase(self, phase: Phase) -> None:
        """Begins the record of a run, and keeps the time of each phase."""
        if phase is Phase.INIT:
            self._record = Record()
        elif self._display is not None:
            self._pace.enter(phase)

    def on_log(self, trainer: Trainer, logs: Mapping[str, Any]) -> None:
        """Shows a row."""
        kind = kind_of(logs)
        if self._display is None:
            self._show_alone(trainer, logs, "evaluation" if kind == "eval" else "log")
        elif kind != "end" or not self.settings.show_summary:
            self._display.row(kind, logs)

    def on_predict(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Shows the metrics of a prediction outside a run."""
        if self._display is None:
            self._show_alone(trainer, metrics, "prediction")

    def on_save(self, trainer: Trainer, checkpoint: Path) -> None:
        """Shows that a checkpoint is complete."""
        self._record.checkpoint, self._record.checkpoint_step = checkpoint, trainer.state.global_step
        if self._display is not None:
            row = {"as": checkpoint.name, "in": in_seconds(self._pace.seconds_in_phase)}
            self._display.row("save", row | {"step": trainer.state.global_step, "epoch": trainer.state.epoch})

    def on_exception(self, error: BaseException) -> None:
        """Notes what ended the run."""
        self._record.error = error

    @hookimpl(trylast=True)
    def on_teardown(self, trainer: Trainer) -> None:
        """Takes the display away and says how the run ended."""
        display = self._display
        if display is None:
            return
        self._close()
        if self.settings.show_summary:
            levels = BLOCKS if can_write(BLOCKS, getattr(sys.stdout, "encoding", None)) else ASCII_LEVELS
            display.summary(closing(trainer, self._record, levels=levels))

    def _close(self) -> None:
        """Ends the refreshing and gives the terminal back; at most once a run."""
        display, self._display = self._display, None
        timer, self._clock = self._clock, None
        try:
            if timer is not None:
                timer.stop()
        finally:
            if display is not None:
                display.close()

    def _show_alone(self, trainer: Trainer, logs: Mapping[str, Any], what: str) -> None:
        """Shows metrics outside a run in one plain line."""
        if self._is_shown(trainer) and not trainer.is_in_train:
            PlainWriter(sys.stdout).write(f"{what}: {joined(parts_of(logs))}")

    def _is_shown(self, trainer: Trainer) -> bool:
        return self.settings.mode != "off" and sys.stdout is not None and trainer.is_main_rank

    def _mode(self) -> Mode:
        """Gives what to show on; what suits standard output where the one that was asked for does not."""
        wanted = "plain" if self.settings.disable_tqdm else self.settings.mode
        if wanted == "plain":
            return "plain"
        is_terminal = sys.stdout.isatty() and (wanted == "terminal" or os.environ.get("TERM", "") not in _DUMB)
        mode: Mode = "notebook" if is_notebook() else "terminal" if is_terminal else "plain"
        if wanted not in ("auto", mode):
            logger.warning("console.mode: standard output is no %s, %s is shown. Set it to 'auto'.", wanted, mode)
        return mode

    def _new_display(self, trainer: Trainer) -> Display:
        mode = self._mode()
        if mode == "notebook":
            return NotebookDisplay(trainer, self._pace)
        if mode == "terminal":
            from trainer_core.console.terminal import TerminalDisplay

            return TerminalDisplay(trainer, self._pace)
        return PlainDisplay(trainer, self._pace, sys.stdout, self.settings.heartbeat_seconds)


_DUMB: Final = ("dumb", "unknown", "")
"""Values of TERM that say that the terminal moves no cursor."""
