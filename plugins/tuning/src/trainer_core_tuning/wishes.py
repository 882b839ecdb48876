"""The arguments of `hyperparameter_search`, checked: all mistakes at once, before anything is tried."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from trainer_core import SettingsError
from trainer_core_tuning.objective import Objective
from trainer_core_tuning.space import Space, default_space

if TYPE_CHECKING:
    from trainer_core import Trainer
    from trainer_core_tuning.settings import TuningSettings

Direction = Literal["minimize", "maximize"]

BACKENDS: Final[Mapping[str, str]] = {
    "ray": "Use backend='optuna'; to spread trials over machines, start this script from Ray itself.",
    "sigopt": "That service has ended; use backend='optuna'.",
    "wandb": "Use backend='optuna', and log the trials to W&B with report_to='wandb'.",
}
FIXED: Final[Mapping[str, tuple[object, str]]] = {
    "n_jobs": (1, "Trials run one after the other; use the ranks of a launcher to make each of them faster."),
    "load_if_exists": (True, "A search goes on where it was; use another study_name to begin anew."),
    "gc_after_trial": (True, "Memory of a trial is always given back."),
    "show_progress_bar": (False, "Use the setting tuning.report."),
}
"""Argument of Optuna's -> the one value that it has here, and why."""
TAKEN: Final = ("storage", "study_name", "sampler", "pruner", "timeout", "catch")
"""Arguments of Optuna's that are taken, instead of the settings."""
PUSHED: Final = (
    "push_to_hub=True would push every trial. Set push_to_hub=False and push the best run's model afterwards."
)
"""Why neither the caller's settings nor a trial's may push."""


@dataclass(frozen=True)
class Wishes:
    """What a search is to do.

    Attributes:
        space: from a trial to settings.
        objective: from metrics to numbers.
        n_trials: how many to try, those of earlier calls included.
        directions: "minimize" or "maximize" for each objective.
        name: from a trial to the name of its run; None for its number.
        sampler, pruner: Optuna's objects that the user passed; None for those of the settings.
        storage: Optuna's object, a URL or a file.
        study_name: of the search in the storage.
        timeout_seconds: no trial begins later; None for no limit.
        catch: errors that only fail their trial.
    """

    space: Space
    objective: Objective
    n_trials: int
    directions: tuple[Direction, ...]
    name: Callable[[Any], str] | None
    sampler: Any
    pruner: Any
    storage: Any
    study_name: str
    timeout_seconds: float | None
    catch: tuple[type[Exception], ...]


def read_wishes(trainer: Trainer, settings: TuningSettings, options: Mapping[str, Any]) -> Wishes:
    """Gives what the arguments and the settings say.

    Raises:
        SettingsError: anything is wrong; it holds every mistake at once.
    """
    problems = [*_problems_of_trainer(trainer), *_problems_of_options(options)]
    directions = _directions(options["direction"], problems)
    if len(directions) > 1 and _wants_pruner(trainer, settings, options):
        problems.append(
            f"pruner: works with one objective, got direction={list(directions)!r}. Leave it out, or optimize one."
        )
    catch = _errors(settings, options.get("catch"), problems)
    if problems:
        raise SettingsError([f"hyperparameter_search: {problem}" for problem in problems])
    timeout = options.get("timeout")
    return Wishes(
        space=options["hp_space"] or default_space,
        objective=Objective(options["compute_objective"], directions),
        n_trials=options["n_trials"],
        directions=directions,
        name=options["hp_name"],
        sampler=options.get("sampler"),
        pruner=options.get("pruner"),
        storage=options.get("storage") or settings.storage,
        study_name=options.get("study_name") or settings.study_name,
        timeout_seconds=settings.timeout_seconds if timeout is None else timeout,
        catch=catch,
    )


def _problems_of_trainer(trainer: Trainer) -> Iterator[str]:
    if trainer.is_in_train:
        yield "a run is on, and a hook asked for a search. Call it after train()."
    if trainer.model_init is None:
        yield "model_init: is needed, each trial trains a new model. Pass model_init=... to Trainer instead of model."
    if getattr(trainer.args, "push_to_hub", False):
        yield PUSHED
    overridden = trainer.overrides("get_eval_dataloader") or trainer.overrides("evaluate")
    if trainer.eval_dataset is None and not overridden:
        yield "eval_dataset: is needed, trials are compared by their evaluations. Pass one to Trainer."


def _problems_of_options(options: Mapping[str, Any]) -> Iterator[str]:
    backend = options["backend"]
    name = str(getattr(backend, "value", backend))
    if backend is not None and name != "optuna":
        remedy = BACKENDS.get(name, "Use backend='optuna', or leave it out.")
        yield f"backend: there is one, Optuna, got {name!r}. {remedy}"
    n_trials = options["n_trials"]
    if not isinstance(n_trials, int) or isinstance(n_trials, bool) or n_trials < 1:
        yield f"n_trials: must be a whole number of at least 1, got {n_trials!r}. Say how many settings to try."
    for argument in ("hp_space", "compute_objective", "hp_name"):
        if options[argument] is not None and not callable(options[argument]):
            yield f"{argument}: must be callable, got {type(options[argument]).__name__}. Pass a function."
    yield from _problems_of_optunas(options)


def _problems_of_optunas(options: Mapping[str, Any]) -> Iterator[str]:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    own = {"hp_space", "compute_objective", "n_trials", "direction", "backend", "hp_name"}
    for name, value in options.items():
        if name in FIXED and value != FIXED[name][0]:
            yield f"{name}: is always {FIXED[name][0]!r}, got {value!r}. {FIXED[name][1]}"
        elif name not in own and name not in FIXED and name not in TAKEN:
            yield f"{name}: is no argument, got {value!r}. Besides its own it takes {', '.join(TAKEN)}."
    for name, kind in (("sampler", BaseSampler), ("pruner", BasePruner)):
        if options.get(name) is not None and not isinstance(options[name], kind):
            yield f"{name}: must be an object of optuna.{name}s, got {options[name]!r}. Name one in tuning.{name}."
    timeout = options.get("timeout")
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        yield f"timeout: must be more than 0 seconds, got {timeout!r}. Leave it out for no limit."


def _wants_pruner(trainer: Trainer, settings: TuningSettings, options: Mapping[str, Any]) -> bool:
    """Tells whether the user asked for a pruner, beyond having the default."""
    is_named = trainer.args.sources.get("tuning.pruner", "default") != "default"
    return options.get("pruner") is not None or (is_named and settings.pruner != "none")


def _directions(given: Any, problems: list[str]) -> tuple[Direction, ...]:
    several = isinstance(given, Sequence) and not isinstance(given, str)
    names = [str(getattr(one, "name", one)).lower() for one in (given if several else [given])]
    if not names or any(name not in ("minimize", "maximize") for name in names):
        problems.append(f"direction: must be 'minimize' or 'maximize', or a list of them, got {given!r}. Say which.")
    return cast("tuple[Direction, ...]", tuple(names))


def _errors(settings: TuningSettings, given: Any, problems: list[str]) -> tuple[type[Exception], ...]:
    """Gives the kinds of error that only fail their trial."""
    if given is None:
        wanted: list[Any] = list(settings.catch)
    else:
        wanted = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    kinds = [_named(one) if isinstance(one, str) else one for one in wanted]
    for one, kind in zip(wanted, kinds, strict=True):
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            problems.append(f"catch: {one!r} names no kind of error. Use names like 'torch.OutOfMemoryError'.")
    return tuple(kinds)


def _named(name: str) -> Any:
    """Gives what a name stands for; None where there is nothing of that name."""
    home, _, last = name.rpartition(".")
    if not home:
        return getattr(builtins, name, None)
    try:
        return getattr(importlib.import_module(home), last, None)
    except ImportError:
        return None
