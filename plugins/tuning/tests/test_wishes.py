"""The arguments of a search: what is refused, and what is taken instead of the settings."""

from __future__ import annotations

import re

import optuna
import pytest

from trainer_core import SettingsError, TrainingArguments
from trainer_core.testing import tiny_model
from trainer_core_tuning import TuningSettings
from trainer_core_tuning.wishes import read_wishes

USUAL = {
    "hp_space": None,
    "compute_objective": None,
    "n_trials": 20,
    "direction": "minimize",
    "backend": None,
    "hp_name": None,
}


def problems(small, tuning=None, **options):
    trainer = small(tuning=tuning or {})
    with pytest.raises(SettingsError) as caught:
        read_wishes(trainer, trainer.args.tuning, USUAL | options)
    return caught.value.problems


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backend": "ray"}, "backend: there is one, Optuna, got 'ray'. Use backend='optuna'; to spread trials over "
         "machines, start this script from Ray itself."),
        ({"backend": "sigopt"}, "backend: there is one, Optuna, got 'sigopt'. That service has ended; use "
         "backend='optuna'."),
        ({"backend": "wandb"}, "backend: there is one, Optuna, got 'wandb'. Use backend='optuna', and log the trials "
         "to W&B with report_to='wandb'."),
        ({"backend": "hyperopt"}, "backend: there is one, Optuna, got 'hyperopt'. Use backend='optuna', or leave it "
         "out."),
        ({"n_trials": 0}, "n_trials: must be a whole number of at least 1, got 0. Say how many settings to try."),
        ({"n_trials": True}, "n_trials: must be a whole number of at least 1, got True. Say how many settings to try."),
        ({"hp_space": {"seed": 1}}, "hp_space: must be callable, got dict. Pass a function."),
        ({"hp_name": "run"}, "hp_name: must be callable, got str. Pass a function."),
        ({"direction": "down"}, "direction: must be 'minimize' or 'maximize', or a list of them, got 'down'. Say "
         "which."),
        ({"direction": []}, "direction: must be 'minimize' or 'maximize', or a list of them, got []. Say which."),
        ({"n_jobs": 2}, "n_jobs: is always 1, got 2. Trials run one after the other; use the ranks of a launcher to "
         "make each of them faster."),
        ({"load_if_exists": False}, "load_if_exists: is always True, got False. A search goes on where it was; use "
         "another study_name to begin anew."),
        ({"callbacks": []}, "callbacks: is no argument, got []. Besides its own it takes storage, study_name, sampler, "
         "pruner, timeout, catch."),
        ({"sampler": "tpe"}, "sampler: must be an object of optuna.samplers, got 'tpe'. Name one in tuning.sampler."),
        ({"pruner": "median"}, "pruner: must be an object of optuna.pruners, got 'median'. Name one in tuning.pruner."),
        ({"timeout": 0}, "timeout: must be more than 0 seconds, got 0. Leave it out for no limit."),
        ({"catch": ("NoError",)}, "catch: 'NoError' names no kind of error. Use names like 'torch.OutOfMemoryError'."),
        ({"catch": "nowhere.Error"}, "catch: 'nowhere.Error' names no kind of error. Use names like "
         "'torch.OutOfMemoryError'."),
        ({"direction": ["minimize"] * 2, "pruner": optuna.pruners.NopPruner()}, "pruner: works with one objective, got "
         "direction=['minimize', 'minimize']. Leave it out, or optimize one."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_told_in_a_whole_sentence(options, told, small):
    assert problems(small, **options) == [f"hyperparameter_search: {told}"]


def test_all_mistakes_are_told_at_once(small):
    names = [one.split(": ")[1] for one in problems(small, n_trials=-1, backend="ray", n_jobs=4, direction=None)]
    assert names == ["backend", "n_trials", "n_jobs", "direction"]


def test_a_pruner_by_name_with_several_objectives_is_refused(small):
    told = problems(small, {"pruner": "hyperband"}, direction=["minimize", "maximize"])
    assert [one.split(": ")[1] for one in told] == ["pruner"]


def test_a_model_without_model_init_is_refused(small):
    with pytest.raises(SettingsError, match=r"model_init: is needed, each trial trains a new model."):
        small(given={"model": tiny_model(), "model_init": None}).hyperparameter_search()


def test_a_search_without_evaluation_data_is_refused(small):
    with pytest.raises(SettingsError, match=r"eval_dataset: is needed, trials are compared by their evaluations."):
        small(given={"eval_dataset": None}, eval_strategy="no").hyperparameter_search()


def test_a_search_that_would_push_every_trial_is_refused(small, tmp_path):
    with pytest.raises(SettingsError) as caught:
        small(installed=["hub_push"], push_to_hub=True, hub_strategy="end").hyperparameter_search()
    told = "hyperparameter_search: push_to_hub=True would push every trial. "
    assert caught.value.problems == [f"{told}Set push_to_hub=False and push the best run's model afterwards."]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tuning.db"]


def test_arguments_go_before_settings(small):
    trainer = small(tuning={"timeout_seconds": 5.0, "study_name": "mine", "catch": ["MemoryError"]})
    section = trainer.args.tuning
    wishes = read_wishes(trainer, section, USUAL)
    assert (wishes.timeout_seconds, wishes.study_name, wishes.catch) == (5.0, "mine", (MemoryError,))
    sampler = optuna.samplers.RandomSampler()
    given = {"timeout": 7, "study_name": "yours", "catch": KeyError, "sampler": sampler, "direction": ["maximize"]}
    wishes = read_wishes(trainer, section, USUAL | given | {"backend": "optuna", "n_jobs": 1})
    assert (wishes.timeout_seconds, wishes.study_name, wishes.catch) == (7, "yours", (KeyError,))
    assert (wishes.sampler, wishes.directions) == (sampler, ("maximize",))


def test_directions_and_backends_of_optuna_and_the_original_are_understood(small):
    class Backend:
        value = "optuna"

    direction = optuna.study.StudyDirection.MAXIMIZE
    trainer = small()
    wishes = read_wishes(trainer, trainer.args.tuning, USUAL | {"direction": direction, "backend": Backend()})
    assert wishes.directions == ("maximize",)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sampler": "tp"}, "tuning.sampler: must be one of 'tpe', "),
        ({"pruner": "best"}, "tuning.pruner: must be one of 'none', "),
        ({"timeout_seconds": 0.0}, "tuning.timeout_seconds: must be greater than 0, got 0.0"),
        ({"table": "a/b.csv"}, "tuning.table: must be a file's name without a folder, got 'a/b.csv'"),
        ({"plot": "tuning.html"}, "tuning.plot: must end in .svg, .png or .pdf, got 'tuning.html'"),
    ],
)
def test_a_wrong_setting_is_refused(settings, told):
    with pytest.raises(SettingsError, match=re.escape(told)):
        TrainingArguments(tuning=settings)


def test_the_settings_by_default():
    assert TuningSettings().model_dump() == {
        "storage": "tuning.db",
        "study_name": "tuning",
        "sampler": "tpe",
        "sampler_options": {},
        "pruner": "median",
        "pruner_options": {},
        "timeout_seconds": None,
        "catch": ["trainer_core.NonFiniteLossError"],
        "report": True,
        "table": "trials.csv",
        "plot": "tuning.svg",
    }
