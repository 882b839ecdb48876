"""The plugin: a row at its moment, every row into the file, and the levels of loggers for the time of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainer_core import Cadence, Phase, hookimpl, interval
from trainer_core_logging.levels import OURS, Levels
from trainer_core_logging.rows import RowFile
from trainer_core_logging.settings import LoggingSettings

if TYPE_CHECKING:
    from trainer_core import Plan, Section, Trainer

logger = logging.getLogger("trainer_core.logging")


class Logging:
    """Logs loss, gradient norm and learning rate at their moments, and keeps every logged row in a file."""

    settings_type: ClassVar[type[Section]] = LoggingSettings

    def __init__(self, settings: LoggingSettings) -> None:
        self.settings = settings
        self._rows = RowFile()
        self._levels = Levels()
        self._cadence = Cadence("no")
        self._max_steps = 0

    def on_plan(self, plan: Plan) -> None:
        """Adds when rows are logged."""
        settings = self.settings
        if settings.first_step:
            plan.schedule("log", "logging_first_step", range(1, 2))
        if settings.strategy == "steps":
            every = interval(settings.steps, plan.max_steps)
            plan.schedule("log", "logging_steps", range(every, plan.max_steps + 1, every))
        elif settings.strategy == "epoch":
            plan.schedule("log", "logging_strategy", Cadence("epoch").steps(plan.max_steps, plan.updates_per_epoch))

    @hookimpl(tryfirst=True)
    def on_phase(self, trainer: Trainer, phase: Phase) -> None:
        """Sets levels before anything is prepared."""
        if phase is Phase.INIT:
            self._set_levels(trainer)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Opens the file on the main rank, and resolves when rows are due."""
        settings, state = self.settings, trainer.state
        if trainer.is_main_rank and (path := self._path(trainer)) is not None:
            begins_again = bool(trainer.resume_source) and trainer.resumed_from is None
            self._rows.open(path, state.log_history, state.global_step, begins_again=begins_again)
        every = interval(settings.steps, state.max_steps) if settings.strategy == "steps" else 0
        self._cadence = Cadence(settings.strategy, every, at_the_end=False)
        self._max_steps = state.max_steps
        state.logging_steps = every

    @hookimpl(trylast=True)
    def on_step_end(self, trainer: Trainer) -> None:
        """Logs a row when one is due, after all other plugins had the update."""
        step = trainer.state.global_step
        if self._cadence.is_due(step, self._max_steps) or (step == 1 and self.settings.first_step):
            trainer.log_training_row()

    @hookimpl(trylast=True)
    def on_epoch_end(self, trainer: Trainer) -> None:
        """Logs a row of the epoch with strategy "epoch"."""
        if self.settings.strategy == "epoch":
            trainer.log_training_row()

    def on_log(self, trainer: Trainer, logs: Mapping[str, Any]) -> None:
        """Writes a row, also one that is logged outside training."""
        if self._rows.is_open:
            self._rows.write(logs)
        elif not trainer.is_in_train and trainer.is_main_rank and (path := self._path(trainer)) is not None:
            self._rows.open(path)
            self._rows.write(logs)
            self._rows.forget()
        logger.debug("%s", logs)

    def on_train_end(self) -> None:
        """Makes the rows durable before anything calls the run finished: a finished run writes none again."""
        self._rows.flush()

    @hookimpl(trylast=True)
    def on_teardown(self) -> None:
        """Closes the file and puts the levels back."""
        self._rows.forget()
        self._levels.put_back()

    def state_dict(self) -> dict[str, int | None]:
        """Gives where the file of rows ends."""
        return self._rows.state_dict()

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Takes over where the file of rows ended when the checkpoint was made."""
        self._rows.load_state_dict(state)

    def _set_levels(self, trainer: Trainer) -> None:
        settings = self.settings
        is_main = trainer.state.is_local_process_zero if settings.on_each_node else trainer.is_main_rank
        prefix = f"[rank {trainer.ranks.rank}] " if trainer.ranks.world_size > 1 else ""
        self._levels.set([OURS, *settings.loggers], settings.level if is_main else settings.level_replica, prefix)

    def _path(self, trainer: Trainer) -> Path | None:
        return None if self.settings.file is None else Path(trainer.args.output_dir) / self.settings.file
