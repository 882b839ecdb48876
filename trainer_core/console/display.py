"""What the console shows on: one protocol, and the clock that refreshes it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from trainer_core.console.report import Report
from trainer_core.console.wording import Kind

logger = logging.getLogger("trainer_core.console")


class Display(Protocol):
    """A place to show a run on; `row` is called by training, `tick` by the clock."""

    def open(self, report: Report | None) -> None:
        """Shows the plan and begins to show progress."""

    def row(self, kind: Kind, logs: Mapping[str, Any]) -> None:
        """Takes a logged row; must cost next to nothing."""

    def tick(self) -> None:
        """Brings what is shown up to date."""

    def close(self) -> None:
        """Shows rows that wait and puts back what was changed; may be called twice."""

    def summary(self, report: Report) -> None:
        """Shows how the run ended, once it is closed."""


class Clock:
    """A thread that calls `tick` every so many seconds until it is stopped.

    A tick that raises is reported once and ends the ticking, and nothing else.
    """

    def __init__(self, tick: Callable[[], None], seconds: float) -> None:
        self._tick = tick
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trainer_core console", daemon=True)

    def start(self) -> None:
        """Begins to tick."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the ticking; no tick is under way when it returns."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._tick()
            except Exception as error:
                logger.warning("console: the display is no longer refreshed, got %r.", error)
                return
