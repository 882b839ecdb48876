"""What a trial changes: from what Optuna suggests to names of settings and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer_core import SettingsError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

Space = Callable[[Any], Mapping[str, Any]]


def default_space(trial: Trial) -> dict[str, Any]:
    """Gives learning rate, epochs, seed and batch size, in the ranges of the original."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
        "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 5),
        "seed": trial.suggest_int("seed", 1, 40),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [4, 8, 16, 32, 64]),
    }


def settings_of(space: Space, trial: Trial) -> dict[str, Any]:
    """Gives the settings that a trial tries.

    Raises:
        SettingsError: `space` gives no mapping from names, or names a setting that is the trial's own.
    """
    try:
        given = space(trial)
    except Exception as error:
        error.add_note(f"raised in hp_space, trial {trial.number}")
        raise
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        problem = f"hp_space: must return names of settings with their values, got {given!r}."
        raise SettingsError([f"{problem} Return for example {{'learning_rate': trial.suggest_float(...)}}."])
    if "output_dir" in given:
        problem = f"hp_space: each trial has a folder of its own, got output_dir={given['output_dir']!r}."
        raise SettingsError([f"{problem} Name the runs with hp_name."])
    return {name: value.item() if hasattr(value, "item") else value for name, value in given.items()}


def changes(trial: Trial, earlier: Sequence[FrozenTrial]) -> Iterator[str]:
    """Says in words how the space of a search that goes on differs from that of its earlier trials."""
    now = trial.distributions
    before = {name: kind for one in earlier for name, kind in one.distributions.items()}
    for name, kind in now.items():
        if name not in before:
            yield f"{name} is new, in {kind}"
        elif before[name] != kind:
            yield f"{name} was in {before[name]}, and is in {kind}"
    spaces = [set(one.user_attrs["space"]) for one in earlier if "space" in one.user_attrs]
    if spaces:
        yield from (f"{name} is gone" for name in sorted(set.intersection(*spaces) - now.keys()))
