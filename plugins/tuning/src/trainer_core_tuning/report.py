"""What a search tells as it goes and when it ends: lines, a table, a file, a picture."""

from __future__ import annotations

import logging
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_core_tuning.results import table_of, write_table
from trainer_core_tuning.trials import begun, best_trials

if TYPE_CHECKING:
    from optuna.study import Study
    from rich.console import Console

    from trainer_core_tuning.settings import TuningSettings

logger = logging.getLogger("trainer_core.tuning")


class Report:
    """Tells of a search, on the main rank.

    Args:
        settings: of the plugin.
        folder: the caller's `output_dir`.
    """

    def __init__(self, settings: TuningSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder

    def say(self, line: str) -> None:
        """Prints a line, or logs it where nothing is to be printed."""
        if self.settings.report:
            self._console.print(f"search: {line}", soft_wrap=True)
        else:
            logger.info("%s", line)

    def close(self, study: Study) -> None:
        """Writes and prints all trials that were begun; a disk that fails is told and ends nothing."""
        trials = begun(study)
        if not trials:
            return
        if self.settings.report:
            self._console.print(table_of(trials, [trial.number for trial in best_trials(study)]))
        try:
            self._write(study)
        except OSError as error:
            logger.warning("%s: the trials cannot be written there, %s.", self.folder, error)

    def _write(self, study: Study) -> None:
        if self.settings.table is not None:
            write_table(self.folder / self.settings.table, begun(study), len(study.directions))
        if self.settings.plot is None:
            return
        path = self.folder / self.settings.plot
        if find_spec("matplotlib") is None:
            told = "%s: is not drawn, matplotlib is not installed. %s"
            logger.warning(told, path, "Install trainer-core-tuning[plot], or set tuning={'plot': None}.")
            return
        from trainer_core_tuning.plot import draw

        try:
            draw(study, path)
        except OSError:
            raise
        except Exception as error:  # a picture is not worth the result of a search
            logger.warning(
                "%s: cannot be drawn, got %s: %s. Set tuning={'plot': None}.", path, type(error).__name__, error
            )

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(highlight=False, markup=False)
