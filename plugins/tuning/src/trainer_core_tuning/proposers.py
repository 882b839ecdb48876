"""Optuna's samplers and pruners by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer_core import SettingsError

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

SAMPLERS: Final[Mapping[str, str]] = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "grid": "GridSampler",
    "qmc": "QMCSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "brute_force": "BruteForceSampler",
}
"""Name -> class of optuna.samplers."""

ONE_ORDER: Final = frozenset({"grid", "qmc"})
"""Samplers that walk over one order of points, which the seed gives."""

NEEDS: Final[Mapping[str, str]] = {"cmaes": "cmaes", "gp": "scipy"}
"""Sampler -> package that it needs besides Optuna."""

PRUNERS: Final[Mapping[str, str]] = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "hyperband": "HyperbandPruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "threshold": "ThresholdPruner",
    "patient": "PatientPruner",
    "wilcoxon": "WilcoxonPruner",
}
"""Name -> class of optuna.pruners."""


def sampler_for(name: str, options: Mapping[str, Any], seed: int, place: int) -> BaseSampler:
    """Gives the sampler that proposes the trial at `place` (from 0) of a search.

    It is made anew for each trial, from the run's seed and the place: all that it has learnt is in the storage, and a
    search that goes on in another process proposes what one that was never interrupted would.

    Raises:
        SettingsError: Optuna does not take the options, or a package is missing.
    """
    from optuna import samplers

    package = NEEDS.get(name)
    if package is not None and find_spec(package) is None:
        raise SettingsError([f"tuning.sampler: {name!r} needs {package}. Install it: pip install {package}."])
    if name not in ONE_ORDER:
        seed = int(np.random.SeedSequence((seed, place)).generate_state(1)[0])
    made: BaseSampler = _made(samplers, SAMPLERS[name], {"seed": seed} | dict(options), "sampler")
    return made


def pruner_for(name: str, options: Mapping[str, Any]) -> BasePruner:
    """Gives the pruner.

    Raises:
        SettingsError: Optuna does not take the options.
    """
    from optuna import pruners

    usual = {"wrapped_pruner": None} if name == "patient" else {}
    made: BasePruner = _made(pruners, PRUNERS[name], usual | dict(options), "pruner")
    return made


def _made(home: Any, kind: str, options: Mapping[str, Any], what: str) -> Any:
    from optuna.exceptions import ExperimentalWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the user chose it by its name
            return getattr(home, kind)(**options)
    except (TypeError, ValueError) as error:
        problem = f"tuning.{what}_options: {kind} does not take them, got {dict(options)!r} ({error})."
        raise SettingsError([f"{problem} See optuna.{what}s.{kind}."]) from None
