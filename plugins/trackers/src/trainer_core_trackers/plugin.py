"""The plugin: opens the trackers of a run on the main rank, hands every row on, and closes them with the outcome."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainer_core import hookimpl
from trainer_core_trackers.kinds import KINDS
from trainer_core_trackers.known import missing
from trainer_core_trackers.reporter import Reporter, Run, in_words
from trainer_core_trackers.rows import Rows, Scalar, flattened
from trainer_core_trackers.settings import TrackersSettings

if TYPE_CHECKING:
    from trainer_core import Plan, Section, Trainer

logger = logging.getLogger("trainer_core.trackers")


class Trackers:
    """Reports settings, plan and rows of a run to the trackers in `report_to`.

    Every call of a tracker is guarded: one that fails is said and counted, the others and the run go on.
    """

    settings_type: ClassVar[type[Section]] = TrackersSettings
    fires_in_replay: ClassVar[bool] = False
    critical: ClassVar[bool] = False

    def __init__(self, settings: TrackersSettings) -> None:
        self.settings = settings
        self._open: list[Reporter] = []
        self._identities: dict[str, str] = {}
        self._rows = Rows()
        self._error: BaseException | None = None
        self._outcome = "completed"
        self._told_alone = False

    def on_plan(self, plan: Plan) -> None:
        """Refuses trackers that are not installed."""
        for problem in missing(self.settings.names):
            plan.contradict(problem)

    @hookimpl(tryfirst=True)
    def on_train_begin(self, trainer: Trainer) -> None:
        """Opens a run in every tracker, or goes on with those of the checkpoint; before the console draws on stdout."""
        self._error, self._rows = None, Rows()
        if trainer.resumed_from is None:
            self._identities = {}
        if trainer.is_main_rank:
            self._begin(trainer, self.settings.names)

    def on_log(self, trainer: Trainer, logs: Mapping[str, Any]) -> None:
        """Reports a row; one that is logged outside training goes to the run that was last."""
        if not trainer.is_main_rank:
            return
        if trainer.is_in_train:
            self._report(logs)
        else:
            self._report_alone(trainer, logs)

    def on_exception(self, error: BaseException) -> None:
        """Remembers what ended the run."""
        self._error = error

    def on_teardown(self, trainer: Trainer) -> None:
        """Ends the run in every tracker, with how it ended."""
        self._outcome = trainer.outcome or "failed"
        words = self._outcome if self._error is None else f"{self._outcome}, {in_words(self._error)}"
        step = trainer.state.global_step
        reporters = list(self._open)
        for reporter in reporters:
            reporter.attempt("storing the outcome", partial(reporter.conclude, words, step))
        self._close()
        for reporter in reporters:
            reporter.attempt("publishing", partial(reporter.publish, self._outcome))

    def state_dict(self) -> dict[str, dict[str, str]]:
        """Gives the trackers' own names of the run."""
        return {"runs": dict(self._identities)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, str]]) -> None:
        """Takes over the trackers' own names of the run that goes on."""
        self._identities = dict(state["runs"])

    def _begin(self, trainer: Trainer, names: Iterable[str], *, alone: bool = False) -> None:
        """Opens trackers and tells them settings and plan; `alone` for a row outside training."""
        output_dir, step = Path(trainer.args.output_dir), trainer.state.global_step
        is_resumed = trainer.resumed_from is not None and not alone
        rows = [(self._rows.metrics(row), int(row["step"])) for row in trainer.state.log_history] if is_resumed else []
        plan = trainer.last_plan.to_json() if trainer.last_plan is not None else None
        values = reported(trainer.args.to_dict())
        for name in names:
            reporter = KINDS.get(name, Reporter)(name, self.settings)
            run = Run(output_dir, step, self._identities.get(name), rows, is_resumed)
            if self._opened(reporter, run) and not (alone and run.continues and reporter.keeps_description):
                reporter.attempt("storing settings", partial(reporter.describe, values, plan, step))

    def _opened(self, reporter: Reporter, run: Run) -> bool:
        try:
            reporter.open(run)
            identity = reporter.identity
        except Exception as error:
            told = "report_to: %s cannot be started, got %s. The run goes on without it."
            logger.warning(told, reporter.name, in_words(error))
            return False
        self._open.append(reporter)
        if identity is not None:
            self._identities[reporter.name] = identity
        else:
            self._identities.pop(reporter.name, None)
        return True

    def _report(self, logs: Mapping[str, Any]) -> None:
        metrics, step = self._rows.metrics(logs), int(logs["step"])
        for reporter in self._open:
            reporter.attempt("reporting", partial(reporter.log, metrics, step))

    def _report_alone(self, trainer: Trainer, logs: Mapping[str, Any]) -> None:
        """Opens the trackers again for one row; those that cannot go on with a run are left out, which is said."""
        names = [name for name in self.settings.names if KINDS.get(name, Reporter).can_continue]
        others = sorted({*self.settings.names} - {*names})
        if others and not self._told_alone:
            self._told_alone = True
            told = "report_to: rows outside training do not reach %s, which cannot open a run again."
            logger.warning(told, ", ".join(others))
        for problem in missing(names):
            logger.warning("%s", problem)
        self._begin(trainer, [name for name in names if not missing([name])], alone=True)
        self._report(logs)
        self._close()

    def _close(self) -> None:
        while self._open:
            reporter = self._open.pop(0)
            reporter.attempt("closing", partial(reporter.close, self._outcome))


def reported(settings: Mapping[str, Any]) -> dict[str, Scalar]:
    """Gives settings as trackers take them; what their own inits are given is no setting of the run."""
    section = {name: value for name, value in settings.get("trackers", {}).items() if name != "init_kwargs"}
    return dict(flattened({**settings, "trackers": section}))
