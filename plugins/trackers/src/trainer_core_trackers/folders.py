"""TensorBoard: a run is a folder."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from datetime import datetime
from itertools import count
from pathlib import Path
from textwrap import indent
from typing import Any, ClassVar

from trainer_core_trackers.reporter import Reporter, Run
from trainer_core_trackers.rows import Scalar
from trainer_core_trackers.settings import TrackersSettings, tensorboard_base


class TensorBoard(Reporter):
    """TensorBoard: a run is a folder."""

    can_continue: ClassVar[bool] = True

    def __init__(self, name: str, settings: TrackersSettings) -> None:
        super().__init__(name, settings)
        self._folder = Path()
        self._output_dir = Path()

    @property
    def identity(self) -> str | None:
        """The folder, relative to that of the run where it lies in it: that may be moved."""
        inside = self._folder.is_relative_to(self._output_dir)
        return (self._folder.relative_to(self._output_dir) if inside else self._folder).as_posix()

    def start(self, run: Run) -> None:
        """Opens the folder; what a resumed run does again replaces what is there of it."""
        self._output_dir = run.output_dir.resolve()
        self._folder = (self._output_dir / run.continues) if run.continues else self._new_folder().resolve()
        held = holds_events(self._folder)
        super().start(run)
        for metrics, step in run.rows:
            if not held or step >= run.step:
                self.log(metrics, step)

    def arguments(self, run: Run) -> tuple[str, ...]:
        """Gives the folder, in the two parts that Accelerate joins."""
        return self._folder.name, str(self._folder.parent)

    def continuation(self, run: Run) -> dict[str, Any]:
        """Gives the step from which on readers forget what is there."""
        return {"purge_step": run.step} if run.is_resumed and holds_events(self._folder) else {}

    def describe(self, settings: Mapping[str, Scalar], plan: str | None, step: int) -> None:
        """Stores settings and plan as texts."""
        texts = {"settings": json.dumps(dict(settings), indent=2)} | ({} if plan is None else {"plan": plan})
        self.tracker.log({name: indent(text, "    ") for name, text in texts.items()}, step=step)

    def conclude(self, outcome: str, step: int) -> None:
        """Stores the outcome as a text."""
        self.tracker.log({"outcome": outcome}, step=step)

    def _new_folder(self) -> Path:
        """Gives a folder without a run in it."""
        settings = self.settings
        base = tensorboard_base(settings, self._output_dir)
        name = settings.run_name or ("" if settings.logging_dir is not None else _moment())
        candidates = (base / (f"{name or 'run'}-{number}" if number > 1 else name) for number in count(1))
        return next(folder for folder in candidates if not holds_events(folder))


def holds_events(folder: Path) -> bool:
    """Tells whether a run of TensorBoard is in a folder."""
    return any(folder.glob("events.out.tfevents.*"))


def _moment() -> str:
    return f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}"
