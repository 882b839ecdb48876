"""Trials as the storage has them, read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

COUNTS: Final = "counts"
"""Attribute of a failed trial that had its chance."""
REDOES: Final = "redoes"
"""Attribute of a trial that takes the values of one that was cut short: its number."""


def counts(trial: FrozenTrial) -> bool:
    """Tells whether a trial had its chance."""
    from optuna.trial import TrialState

    if trial.state == TrialState.FAIL:
        return bool(trial.user_attrs.get(COUNTS))
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def begun(study: Study) -> list[FrozenTrial]:
    """Gives all trials but those that wait in line."""
    from optuna.trial import TrialState

    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def waiting(study: Study) -> list[FrozenTrial]:
    """Gives the trials that wait in line."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.WAITING])


def best_trials(study: Study) -> list[FrozenTrial]:
    """Gives the best trial, or those of several objectives that no other beats in all; none where none completed."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        return []
    return [study.best_trial] if len(study.directions) == 1 else study.best_trials


def again_of(trial: FrozenTrial) -> FrozenTrial:
    """Gives a trial that waits in line, with the values of one that was cut short."""
    from optuna.trial import TrialState, create_trial

    # The attributes are those by which a sampler knows its place; the values are what it is not to choose anew.
    return create_trial(
        state=TrialState.WAITING,
        system_attrs={**trial.system_attrs, "fixed_params": dict(trial.params)},
        user_attrs={REDOES: trial.number},
    )


def in_numbers(trials: list[FrozenTrial]) -> str:
    """Says how many trials there are of each state."""
    states = [trial.state.name.lower() for trial in trials]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trial"


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gives values as a database keeps them: what JSON does not have, as text."""
    kept: dict[str, Any] = json.loads(json.dumps(values, default=str), parse_constant=str)
    return kept
