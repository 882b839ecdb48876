"""Samplers and pruners by name."""

from typing import get_args

import optuna
import pytest

from trainer_core import SettingsError
from trainer_core_tuning import proposers
from trainer_core_tuning.proposers import PRUNERS, SAMPLERS, pruner_for, sampler_for
from trainer_core_tuning.settings import PrunerName, SamplerName

OPTIONS = {
    "grid": {"search_space": {"x": [1, 2]}},
    "threshold": {"upper": 1.0},
    "percentile": {"percentile": 25.0},
    "patient": {"patience": 2},
}


def test_each_name_of_the_settings_has_a_class():
    assert (set(SAMPLERS), set(PRUNERS)) == (set(get_args(SamplerName)), set(get_args(PrunerName)))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "cmaes"])
def test_a_sampler_is_made_by_name(name):
    sampler = sampler_for(name, OPTIONS.get(name, {}), seed=1, place=0)
    assert type(sampler) is getattr(optuna.samplers, SAMPLERS[name])


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_is_made_by_name(name):
    assert type(pruner_for(name, OPTIONS.get(name, {}))) is getattr(optuna.pruners, PRUNERS[name])


def proposed(name, seed, place, options=()):
    study = optuna.create_study(sampler=sampler_for(name, dict(options), seed, place))
    return study.ask().suggest_float("x", 0, 1)


def test_what_is_proposed_follows_from_seed_and_place():
    assert proposed("tpe", 1, 0) == proposed("tpe", 1, 0)
    assert len({proposed("tpe", seed, place) for seed in (1, 2) for place in (0, 1)}) == 4


def test_a_seed_in_the_options_goes_before_the_runs():
    assert proposed("random", 1, 0, {"seed": 5}) == proposed("random", 2, 3, {"seed": 5})


def test_a_grid_is_walked_in_one_order():
    points = [sampler_for("grid", {"search_space": {"x": list(range(9))}}, 7, place)._all_grids for place in (0, 1)]
    assert points[0] == points[1]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: sampler_for("tpe", {"startup": 1}, 0, 0), "tuning.sampler_options: TPESampler does not take them"),
        (lambda: pruner_for("patient", {"patience": -1}), "tuning.pruner_options: PatientPruner does not take them"),
    ],
)
def test_options_that_optuna_does_not_take_are_named(make, told):
    with pytest.raises(SettingsError, match=told):
        make()


def test_a_sampler_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(proposers, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"tuning.sampler: 'cmaes' needs cmaes. Install it: pip install cmaes."):
        sampler_for("cmaes", {}, 0, 0)
