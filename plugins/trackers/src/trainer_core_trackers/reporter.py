"""A tracker of one run: Accelerate's class for it, and what every tracker has in common."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from trainer_core import PluginError, mask_text
from trainer_core_trackers.known import KNOWN, options_of
from trainer_core_trackers.rows import Number, Scalar
from trainer_core_trackers.settings import TrackersSettings

logger = logging.getLogger("trainer_core.trackers")

PROJECT: Final = "huggingface"
"""The project of a run that names none, where the guide's users look for it."""

MAX_FAILURES: Final = 3
"""A tracker is switched off after so many exceptions in a run."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a tracker is told of a run when it begins.

    Attributes:
        output_dir: the run's folder.
        step: updates that are done.
        continues: the tracker's own name of the run that goes on; None for a new one.
        rows: what was logged so far in a training run that goes on, as (metrics, step); empty outside training.
        is_resumed: the updates after `step` are done again.
    """

    output_dir: Path
    step: int
    continues: str | None = None
    rows: Sequence[tuple[Mapping[str, Number], int]] = ()
    is_resumed: bool = False


class Reporter:
    """One tracker; the base serves all that need nothing special.

    Args:
        name: as in `report_to`.
        settings: of the plugin.
    """

    can_continue: ClassVar[bool] = False
    """Whether a run that was closed can be opened again."""
    keeps_description: ClassVar[bool] = True
    """Whether settings and plan of a run that goes on are still there."""
    project_variable: ClassVar[str] = ""
    """Environment variable that names the project where no setting does."""

    def __init__(self, name: str, settings: TrackersSettings) -> None:
        self.name = name
        self.settings = settings
        self.failures = 0
        self.tracker: Any = None

    @property
    def is_off(self) -> bool:
        """Whether it failed too often to be asked again."""
        return self.failures >= MAX_FAILURES

    @property
    def identity(self) -> str | None:
        """The tracker's own name of the run, by which it can go on; None when it cannot."""
        return None

    def open(self, run: Run) -> None:
        """Starts the tracker; a run that cannot go on is begun anew, with a warning."""
        try:
            self.start(run)
        except Exception as error:
            if run.continues is None:
                raise
            told = "report_to: %s cannot go on with %s (%s). A new run begins there."
            logger.warning(told, self.name, run.continues, in_words(error))
            self.start(Run(run.output_dir, run.step, rows=run.rows))

    def start(self, run: Run) -> None:
        """Makes Accelerate's tracker and starts it."""
        keywords = {**self.keywords(run), **self.settings.init_kwargs.get(self.name, {}), **self.continuation(run)}
        self.tracker = _tracker_class(self.name)(*self.arguments(run), **keywords)
        self.tracker.start()

    def arguments(self, run: Run) -> tuple[str, ...]:
        """Gives what stands first in the constructor of Accelerate's class: the project, and a folder where needed."""
        folder = self.settings.logging_dir or str(run.output_dir)
        return (self.project, folder) if "logging_dir" in options_of(self.name) else (self.project,)

    def keywords(self, run: Run) -> dict[str, Any]:
        """Gives the keywords of the tracker's init that follow from settings."""
        keyword = options_of(self.name).get("run_name", "")
        return {keyword: self.settings.run_name} if keyword and self.settings.run_name is not None else {}

    def continuation(self, run: Run) -> dict[str, Any]:
        """Gives the keywords by which a run goes on."""
        return {}

    @property
    def project(self) -> str:
        """The project or experiment."""
        return self.settings.project or os.environ.get(self.project_variable, "") or PROJECT

    def describe(self, settings: Mapping[str, Scalar], plan: str | None, step: int) -> None:
        """Stores settings and plan (JSON) with the run."""
        self.tracker.store_init_configuration({**settings, **({} if plan is None else {"plan": plan})})

    def log(self, metrics: Mapping[str, Number], step: int) -> None:
        """Reports the metrics of an update."""
        self.tracker.log(dict(metrics), step=step)

    def conclude(self, outcome: str, step: int) -> None:
        """Stores how the run ended, in words, where the tracker has a place for it."""

    def close(self, outcome: str) -> None:
        """Ends the tracker's run, with its status where the tracker knows one."""
        self.tracker.finish()

    def publish(self, outcome: str) -> None:
        """Shows a closed training run to others, where settings want that."""

    def attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Tells whether `action` went well; says what did not, and counts it."""
        if self.is_off and what != "closing":
            return False
        try:
            action()
        except Exception as error:
            self.failures += 1
            told = "report_to: %s failed in %s (%d of %d), got %s. The run goes on."
            logger.warning(told, self.name, what, self.failures, MAX_FAILURES, in_words(error))
            if self.failures == MAX_FAILURES and what != "closing":
                logger.warning("report_to: %s is switched off for this run after %d failures.", self.name, MAX_FAILURES)
            return False
        return True


class TrackerError(PluginError):
    """A tracker that cannot be used as things are."""


def in_words(error: BaseException) -> str:
    """Gives an error in one line, with what looks like a token masked: trackers are services of others."""
    text = mask_text(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _tracker_class(name: str) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(set(KNOWN) & set(LOGGER_TYPE_TO_CLASS)))
        raise TrackerError(f"this version of Accelerate has no tracker of that name, only {known}")
    return LOGGER_TYPE_TO_CLASS[name]
