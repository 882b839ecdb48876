"""The search: propose, train, account; then the best.

All ranks walk through it together. The main rank keeps the account; what it proposes and decides, all get from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from trainer_core import SettingsError, owned
from trainer_core_tuning.book import Book
from trainer_core_tuning.proposal import Proposal
from trainer_core_tuning.report import Report
from trainer_core_tuning.results import BestRun, in_words
from trainer_core_tuning.sharing import SharedTrial, on_main
from trainer_core_tuning.trial import Watch, run_trial
from trainer_core_tuning.wishes import PUSHED, Wishes, read_wishes

if TYPE_CHECKING:
    from trainer_core import Trainer, TrainingArguments
    from trainer_core_tuning.settings import TuningSettings


def search(trainer: Trainer, settings: TuningSettings, options: Mapping[str, Any]) -> BestRun | list[BestRun]:
    """Trains with many settings and gives the best run, or the best runs of several objectives.

    Raises:
        OwnershipError: another run or search is in the output folder.
        SettingsError: arguments that are wrong, or a trial with settings that are; before it trains.
        PluginError: no trial gave an objective.
        KeyboardInterrupt: the search was interrupted; the same call goes on.
    """
    wishes = read_wishes(trainer, settings, options)
    folder = Path(trainer.args.output_dir)
    models = [ref(trainer.model)]
    book = Book(wishes, settings, trainer.args.seed, Report(settings, folder))
    with owned(folder, trainer.ranks):
        try:
            on_main(trainer, book.open)
            while (proposal := on_main(trainer, book.propose)) is not None:
                _try_out(trainer, book, wishes, Watch(proposal, book.judge, models))
            return on_main(trainer, book.best)
        finally:
            if trainer.is_main_rank:
                book.close()


def _try_out(trainer: Trainer, book: Book, wishes: Wishes, watch: Watch) -> None:
    """Runs one trial and accounts for what became of it, an error included."""
    proposal = watch.proposal
    try:
        args = _args_of(trainer.args, proposal)
        try:
            metrics = run_trial(trainer, args, watch, _trial_of(trainer, book, proposal))
            _settle(trainer, book, watch, metrics)
        except wishes.catch as error:
            told = f"{type(error).__name__}: {error}"
            on_main(trainer, lambda: book.fail(told, counts=True))
    except BaseException as error:
        is_interrupt = not isinstance(error, Exception)
        if trainer.is_main_rank:
            book.fail(f"{type(error).__name__}: {error}", counts=False, again=is_interrupt)
        error.add_note(f"raised in trial {proposal.number} of the search, with {in_words(proposal.settings)}")
        error.add_note("the same call of hyperparameter_search goes on with the trials that are missing")
        raise


def _args_of(given: TrainingArguments, proposal: Proposal) -> TrainingArguments:
    """Gives the settings of a trial: a folder of its own, and a name of its own for trackers.

    Raises:
        SettingsError: they are wrong, or would push the trial.
    """
    args = given.replace(**{**proposal.settings, "output_dir": str(Path(given.output_dir) / proposal.run)})
    if getattr(args, "push_to_hub", False):
        raise SettingsError([f"hyperparameter_search: {PUSHED}"])
    name = getattr(args, "run_name", None)
    is_inherited = name is not None and name == getattr(given, "run_name", None)
    return args.replace(run_name=f"{name}-{proposal.run}") if is_inherited else args


def _settle(trainer: Trainer, book: Book, watch: Watch, metrics: dict[str, Any] | None) -> None:
    """Accounts for a trial that ended in order."""
    if metrics is None:
        why = watch.pruned_because or ""
        on_main(trainer, lambda: book.prune(why))
    else:
        of_end = metrics
        on_main(trainer, lambda: book.complete(of_end))


def _trial_of(trainer: Trainer, book: Book, proposal: Proposal) -> Any:
    """Gives what `model_init` gets: Optuna's trial, or with several ranks one that suggests the same on each."""
    if trainer.ranks.world_size == 1:
        return book.trial
    return SharedTrial(trainer, book.trial, proposal.number, proposal.params)
