"""The account of a search, on the main rank: which trials there are, which comes next, what became of each.

A trial counts when it had its chance: it completed, was pruned, or failed by itself (no finite objective, an error
that is caught). One that was cut short (the process was killed or interrupted) does not count; its values are put in
line again, and the next trial takes them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from trainer_core import PluginError, SettingsError, mask_text
from trainer_core_tuning.objective import Metrics
from trainer_core_tuning.proposal import Proposal, proposal_of
from trainer_core_tuning.proposers import pruner_for, sampler_for
from trainer_core_tuning.report import Report
from trainer_core_tuning.results import BestRun, best_run, in_words, objectives_in_words
from trainer_core_tuning.storage import opened, shown
from trainer_core_tuning.trials import (
    COUNTS,
    REDOES,
    again_of,
    as_json,
    begun,
    best_trials,
    counts,
    in_numbers,
    waiting,
)

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from trainer_core_tuning.settings import TuningSettings
    from trainer_core_tuning.wishes import Wishes

logger = logging.getLogger("trainer_core.tuning")

EXHAUSTED: Final = "exhausted"
"""Attribute of a search whose sampler has nothing more to propose: the sampler."""


class Book:
    """The trials of one call.

    Args:
        wishes: what the user asked for.
        settings: of the plugin.
        seed: of the caller's run.
        report: to tell what happens.
    """

    study: Study
    trial: Trial | None = None

    def __init__(self, wishes: Wishes, settings: TuningSettings, seed: int, report: Report) -> None:
        self.wishes = wishes
        self.settings = settings
        self.seed = seed
        self.report = report
        self.sampler_name = f"{settings.sampler} {settings.sampler_options}"
        if wishes.sampler is not None:
            self.sampler_name = type(wishes.sampler).__name__
        self._undo = ExitStack()
        self._is_first = True
        self._started = perf_counter()

    def open(self) -> None:
        """Opens the storage, and the search in it where there is one.

        Raises:
            SettingsError: the search there optimizes in another direction.
        """
        import optuna

        wishes, settings = self.wishes, self.settings
        self._undo.enter_context(_quiet())
        storage = self._undo.enter_context(opened(wishes.storage, self.report.folder))
        study = optuna.create_study(
            storage=storage,
            study_name=wishes.study_name,
            directions=list(wishes.directions),
            sampler=wishes.sampler or self._sampler(0),
            pruner=wishes.pruner or pruner_for(settings.pruner, settings.pruner_options),
            load_if_exists=True,
        )
        known = [direction.name.lower() for direction in study.directions]
        if known != list(wishes.directions):
            problem = f"direction: the search {wishes.study_name!r} in {shown(wishes.storage)} was begun with {known}"
            raise SettingsError([f"{problem}, got {list(wishes.directions)}. Use another study_name or output_dir."])
        study.stop = self._exhausted  # type: ignore[method-assign] # samplers call it; its own serves optimize() only
        self.study = study
        self._take_up()

    def close(self) -> None:
        """Tells of all trials and closes the storage."""
        with self._undo:
            if hasattr(self, "study"):
                self.report.close(self.study)

    def propose(self) -> Proposal | None:
        """Gives the next trial; None when all are done or the time is up.

        Raises:
            SettingsError: what `hp_space` or `hp_name` gave cannot be tried.
        """
        wishes, counted, limit = self.wishes, self.num_counted(), self.wishes.timeout_seconds
        if counted >= wishes.n_trials:
            return None
        if self.study.user_attrs.get(EXHAUSTED) == self.sampler_name and not waiting(self.study):
            self.report.say(f"{self.sampler_name} has nothing more to propose, after {counted} trials")
            return None
        if limit is not None and perf_counter() - self._started >= limit:
            self.report.say(f"no trial begins after {limit:g} s; {counted} of {wishes.n_trials} are done")
            return None
        if wishes.sampler is None:
            self.study.sampler = self._sampler(counted)
        earlier = begun(self.study)
        self.trial = self.study.ask()
        try:
            proposal = proposal_of(self.wishes, self.trial, earlier if self._is_first else [], self.report.folder)
        except BaseException as error:
            self.fail(f"{type(error).__name__}: {error}", counts=False)
            raise
        self._is_first = False
        return proposal

    def judge(self, step: int, metrics: Metrics) -> str | None:
        """Reports an evaluation of the trial that trains; says why it is to end, None where it goes on."""
        if len(self.wishes.directions) > 1:
            return None
        assert self.trial is not None
        (value,) = self.wishes.objective(metrics)
        self.trial.report(value, step)
        if not self.trial.should_prune():
            return None
        pruner = type(self.study.pruner).__name__
        return f"{pruner} ends trial {self.trial.number}: objective {value:.6g} at step {step}{self._best_in_words()}"

    def complete(self, metrics: Metrics) -> None:
        """Accounts for a trial that was trained to its end."""
        assert self.trial is not None
        values = self.wishes.objective(metrics)
        self.trial.set_user_attr("metrics", as_json(metrics))
        if any(map(math.isnan, values)):
            self.fail(f"the objective is NaN, got {values if len(values) > 1 else values[0]}", counts=True)
            return
        self.study.tell(self.trial, values)
        self._say_outcome(f"objective {objectives_in_words(values)}")

    def prune(self, why: str) -> None:
        """Accounts for a trial that was ended early."""
        from optuna.trial import TrialState

        assert self.trial is not None
        self.trial.set_user_attr("why", why)
        self.study.tell(self.trial, state=TrialState.PRUNED)
        self._say_outcome("pruned")

    def fail(self, why: str, *, counts: bool, again: bool = False) -> None:
        """Accounts for a trial that gave no objective; one that is accounted for already is left alone.

        Args:
            why: in words.
            counts: it had its chance.
            again: its values are put in line again.
        """
        from optuna.trial import TrialState

        assert self.trial is not None
        trials = self.study.get_trials(deepcopy=False)
        if trials[self.trial.number].state.is_finished():
            return
        why = mask_text(why)
        self.trial.set_user_attr("why", why)
        self.trial.set_user_attr(COUNTS, counts)
        if again:
            self._put_in_line(trials[self.trial.number], trials)
        self.study.tell(self.trial, state=TrialState.FAIL)
        if counts:
            logger.warning("trial %d: failed, %s; %s.", self.trial.number, why, in_words(self.trial.params))
        self._say_outcome("failed" if counts else "cut short")

    def best(self) -> BestRun | list[BestRun]:
        """Gives the best trial, or the best trade-offs of several objectives.

        Raises:
            PluginError: no trial completed.
        """
        found = best_trials(self.study)
        if not found:
            raise PluginError(
                f"hyperparameter_search: no trial gave an objective, got {in_numbers(begun(self.study))}. "
                f"Why stands beside each of them in {self.settings.table or 'the log'}; mend that, or raise n_trials."
            )
        runs = [best_run(trial, self.report.folder, self.num_counted()) for trial in found]
        return runs if len(self.wishes.directions) > 1 else runs[0]

    def num_counted(self) -> int:
        """Gives how many trials had their chance."""
        return sum(map(counts, self.study.get_trials(deepcopy=False)))

    def _take_up(self) -> None:
        """Marks trials that a killed process left as failed, and puts their values in line again."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        if trials and self.wishes.sampler is not None:
            self.study.sampler.reseed_rng()  # one that starts from its seed again would propose the first trials again
        for trial in [one for one in trials if one.state == TrialState.RUNNING]:
            self._put_in_line(trial, trials)
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.report.say(f"trial {trial.number}: was cut short when its process ended, and is done again")
        if counted := self.num_counted():
            self.report.say(f"{self.study.study_name!r} goes on, {counted} of {self.wishes.n_trials} trials are done")

    def _put_in_line(self, trial: FrozenTrial, trials: Iterable[FrozenTrial]) -> None:
        """Lets the next trial take the values of one that was cut short; once."""
        if all(other.user_attrs.get(REDOES) != trial.number for other in trials):
            self.study.add_trial(again_of(trial))

    def _sampler(self, place: int) -> Any:
        return sampler_for(self.settings.sampler, self.settings.sampler_options, self.seed, place)

    def _exhausted(self) -> None:
        """Keeps that the sampler has proposed all there is."""
        self.study.set_user_attr(EXHAUSTED, self.sampler_name)

    def _best_in_words(self) -> str:
        found = best_trials(self.study)
        return f", best so far {objectives_in_words(found[0].values)} of trial {found[0].number}" if found else ""

    def _say_outcome(self, outcome: str) -> None:
        assert self.trial is not None
        done = f"{self.num_counted()} of {self.wishes.n_trials} done"
        best = self._best_in_words() if len(self.wishes.directions) == 1 else ""
        self.report.say(f"trial {self.trial.number}: {outcome}{best} ({done}); {in_words(self.trial.params)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna's own lines away: the search tells its own."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
