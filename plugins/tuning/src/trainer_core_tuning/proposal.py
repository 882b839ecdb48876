"""What a trial is: asked of the user's functions, and checked before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from trainer_core import SettingsError
from trainer_core_tuning.space import changes, settings_of
from trainer_core_tuning.trials import as_json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from trainer_core_tuning.wishes import Wishes

logger = logging.getLogger("trainer_core.tuning")


@dataclass(frozen=True)
class Proposal:
    """A trial that is to be run.

    Attributes:
        number: of the trial.
        run: name of its run, and of its folder.
        settings: names of `TrainingArguments` with values.
        params: what was suggested so far.
    """

    number: int
    run: str
    settings: dict[str, Any]
    params: dict[str, Any]


def proposal_of(wishes: Wishes, trial: Trial, earlier: Sequence[FrozenTrial], folder: Path) -> Proposal:
    """Gives what `trial` is, and keeps it with the trial.

    Args:
        wishes: with the user's functions.
        trial: whose values are not suggested yet.
        earlier: trials of earlier calls, whose space is compared.
        folder: of the search.

    Raises:
        SettingsError: what `hp_space` or `hp_name` gave cannot be tried.
    """
    others = [one for one in earlier if one.params]
    try:
        settings = settings_of(wishes.space, trial)
    except ValueError as error:
        if others:
            error.add_note("the study's earlier trials may have had another space: then use another study_name")
        raise
    for change in changes(trial, others) if others else ():
        logger.warning("hp_space: differs from that of earlier trials, which still count: %s.", change)
    run = run_name(wishes.name, trial, folder)
    for name, value in (("run", run), ("settings", as_json(settings)), ("space", list(trial.params))):
        trial.set_user_attr(name, value)
    return Proposal(trial.number, run, settings, dict(trial.params))


def run_name(name: Callable[[Any], str] | None, trial: Trial, folder: Path) -> str:
    """Gives the name of a trial's run, whose folder in `folder` is new.

    Raises:
        SettingsError: `name` gives no name of a folder, or the folder is another search's.
    """
    run = f"run-{trial.number}" if name is None else name(trial)
    if not isinstance(run, str) or not run or PurePath(run).name != run or run in {".", ".."}:
        problem = f"hp_name: must return the name of a folder, got {run!r}."
        raise SettingsError([f"{problem} Return for example f'run-{{trial.number}}'."])
    if name is not None and _is_taken(folder / run):
        run = f"{run}-{trial.number}"
    if _is_taken(folder / run):
        problem = f"output_dir: the folder {folder / run} is there already, from another search."
        raise SettingsError([f"{problem} Use a new output_dir, remove it, or name the runs with hp_name."])
    return run


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
