"""A search goes on where it was: after a kill, an interrupt, an error, or with more trials."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from trainer_core import SettingsError

STARTUP = {"sampler_options": {"n_startup_trials": 1}}


class Interrupt:
    """Sends a real signal in one trial, once."""

    def __init__(self, run):
        self.run = run

    def on_step_end(self, trainer):
        if trainer.state.trial_name == self.run and trainer.state.global_step == 3:
            self.run = None
            os.kill(os.getpid(), signal.SIGINT)


def values(study, *states):
    return [(one.params, one.values) for one in study.trials if one.state.name in states]


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(small, space, study, rows, capsys, tmp_path):
    script = Path(__file__).with_name("killed_script.py")
    done = subprocess.run([sys.executable, script, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [trial.state.name for trial in study().trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    best = small(tuning=STARTUP).hyperparameter_search(space, n_trials=4)
    trials = study().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert (trials[3].params, trials[3].user_attrs["redoes"]) == (trials[2].params, 2)
    assert "trial 2: was cut short when its process ended, and is done again" in capsys.readouterr().out
    assert [row["why"] for row in rows()] == ["", "", "its process ended", "", ""]

    whole = small(output_dir=tmp_path / "whole", tuning=STARTUP).hyperparameter_search(space, n_trials=4)
    url = f"sqlite:///{tmp_path}/whole/tuning.db"
    uncut = optuna.load_study(study_name="tuning", storage=url)
    assert values(study(), "COMPLETE", "PRUNED") == values(uncut, "COMPLETE", "PRUNED")
    assert (best.objective, best.hyperparameters) == (whole.objective, whole.hyperparameters)


def test_an_interrupt_ends_the_search_and_the_trial_is_done_again(small, space, study):
    handler = signal.getsignal(signal.SIGINT)
    trainer = small(given={"plugins": [Interrupt("run-1")]})
    before = dict(vars(trainer))
    with pytest.raises(KeyboardInterrupt, match="SIGINT: the operating system or the user asks to end") as caught:
        trainer.hyperparameter_search(space, n_trials=3)
    assert caught.value.__notes__[-1].startswith("the same call of hyperparameter_search goes on")
    assert {name: vars(trainer)[name] for name in before} == before
    assert signal.getsignal(signal.SIGINT) is handler
    trainer.hyperparameter_search(space, n_trials=3)
    trials = study().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert (trials[2].params, trials[2].user_attrs["redoes"]) == (trials[1].params, 1)


def test_an_interrupt_between_trials_leaves_none_running(small, states):
    def interrupted(trial):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small().hyperparameter_search(interrupted, n_trials=1)
    assert states() == ["FAIL"]


def test_a_search_that_is_done_tries_nothing_more_but_gives_its_best(small, space, states):
    best = small().hyperparameter_search(space, n_trials=2)
    assert small().hyperparameter_search(space, n_trials=2) == best
    assert states() == ["COMPLETE"] * 2


def test_a_search_with_more_trials_goes_on(small, space, study, tmp_path):
    small(tuning=STARTUP).hyperparameter_search(space, n_trials=1)
    small(tuning=STARTUP).hyperparameter_search(space, n_trials=3)
    small(output_dir=tmp_path / "whole", tuning=STARTUP).hyperparameter_search(space, n_trials=3)
    whole = optuna.load_study(study_name="tuning", storage=f"sqlite:///{tmp_path}/whole/tuning.db")
    assert values(study(), "COMPLETE") == values(whole, "COMPLETE")


def test_a_sampler_of_the_user_does_not_begin_again(small, space, study):
    for n_trials in (1, 2):
        small().hyperparameter_search(space, n_trials=n_trials, sampler=optuna.samplers.RandomSampler(seed=1))
    one, other = study().trials
    assert one.params != other.params


def test_another_direction_is_refused(small, space):
    small().hyperparameter_search(space, n_trials=1)
    told = r"direction: the search 'tuning' in tuning.db was begun with \['minimize'\], got \['maximize'\]. Use another"
    with pytest.raises(SettingsError, match=told):
        small().hyperparameter_search(space, n_trials=2, direction="maximize")


def test_another_space_is_said_once(small, space, told):
    small().hyperparameter_search(space, n_trials=1)

    def other(trial):
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-2, 1.0, log=True),
            "seed": trial.suggest_int("seed", 1, 2),
        }

    small().hyperparameter_search(other, n_trials=3)
    head = "hp_space: differs from that of earlier trials, which still count: "
    bounds = "FloatDistribution(high=1.0, log=True, low={}, step=None)"
    assert told() == [
        f"{head}learning_rate was in {bounds.format(0.001)}, and is in {bounds.format(0.01)}.",
        f"{head}seed is new, in IntDistribution(high=2, log=False, low=1, step=1).",
    ]


def test_a_parameter_that_is_gone_is_said(small, space, told):
    small().hyperparameter_search(space, n_trials=1)
    small().hyperparameter_search(lambda trial: {"seed": trial.suggest_int("seed", 1, 9)}, n_trials=2)
    assert "hp_space: differs from that of earlier trials, which still count: learning_rate is gone." in told()


def test_other_choices_are_refused_with_what_to_do(small, states):
    def choose(*choices):
        return lambda trial: {"seed": trial.suggest_categorical("seed", choices)}

    small().hyperparameter_search(choose(1, 2), n_trials=1)
    with pytest.raises(ValueError, match="dynamic value space") as caught:
        small().hyperparameter_search(choose(3, 4), n_trials=2)
    assert any("then use another study_name" in note for note in caught.value.__notes__)
    assert states() == ["COMPLETE", "FAIL"]


GRID = {"sampler": "grid", "sampler_options": {"search_space": {"seed": [1, 2, 3]}}}


def seeds(trial):
    return {"seed": trial.suggest_int("seed", 1, 3)}


def test_a_grid_ends_when_each_point_was_tried(small, study, capsys):
    small(tuning=GRID).hyperparameter_search(seeds, n_trials=9)
    assert sorted(trial.params["seed"] for trial in study().trials) == [1, 2, 3]
    small(tuning=GRID).hyperparameter_search(seeds, n_trials=9)
    assert len(study().trials) == 3
    assert "has nothing more to propose, after 3 trials" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["run-0", "run-2"])
def test_a_point_of_a_grid_that_was_interrupted_is_done_again(run, small, study):
    trainer = small(tuning=GRID, given={"plugins": [Interrupt(run)]})
    with pytest.raises(KeyboardInterrupt):
        trainer.hyperparameter_search(seeds, n_trials=9)
    trainer.hyperparameter_search(seeds, n_trials=9)
    done = [trial.params["seed"] for trial in study().trials if trial.state.name == "COMPLETE"]
    assert sorted(done) == [1, 2, 3]
    assert len(study().trials) == 4


def test_no_trial_begins_after_the_time_is_up(small, space, states, capsys):
    best = small(tuning={"timeout_seconds": 1e-9}).hyperparameter_search
    with pytest.raises(RuntimeError, match="no trial gave an objective, got no trial"):
        best(space, n_trials=5)
    assert "no trial begins after 1e-09 s; 0 of 5 are done" in capsys.readouterr().out
    small().hyperparameter_search(space, n_trials=1, timeout=600)
    assert states() == ["COMPLETE"]


def test_searches_of_two_names_share_a_storage(small, space, tmp_path):
    for name in ("one", "two"):
        small().hyperparameter_search(
            space, n_trials=1, study_name=name, hp_name=lambda trial, name=name: f"{name}-{trial.number}"
        )
    url = f"sqlite:///{tmp_path}/out/tuning.db"
    assert optuna.get_all_study_names(url) == ["one", "two"]
    assert {"one-0", "two-0"} <= {path.name for path in (tmp_path / "out").iterdir()}


def names(path):
    return optuna.get_all_study_names(optuna.storages.RDBStorage(f"sqlite:///{path}"))


def test_trials_may_be_kept_in_another_file(small, space, tmp_path):
    path = tmp_path / "elsewhere" / "all ?trials#1.db"
    small(tuning={"storage": str(path)}).hyperparameter_search(space, n_trials=1)
    assert path.is_file()
    assert not (tmp_path / "out" / "tuning.db").exists()


def test_trials_may_be_kept_behind_a_url(small, space, tmp_path):
    small().hyperparameter_search(space, n_trials=1, storage=f"sqlite:///{tmp_path}/trials.db")
    assert (names(tmp_path / "trials.db"), names(tmp_path / "out" / "tuning.db")) == (["tuning"], [])


def test_trials_may_be_kept_in_an_object_of_optuna(small, space):
    storage = optuna.storages.InMemoryStorage()
    small().hyperparameter_search(space, n_trials=1, storage=storage)
    assert [trial.state.name for trial in optuna.load_study(study_name="tuning", storage=storage).trials] == [
        "COMPLETE"
    ]


@pytest.mark.parametrize("storage", ["nosuch://host/db", "sqlite:////nowhere/at/all/trials.db"])
def test_a_storage_that_cannot_be_opened_is_named(storage, small, space):
    with pytest.raises(SettingsError, match=re.escape(f"tuning.storage: cannot be opened, got {storage!r}")):
        small(tuning={"storage": storage}).hyperparameter_search(space, n_trials=1)


def test_a_password_of_a_storage_is_not_shown(small, space):
    with pytest.raises(SettingsError) as caught:
        small(tuning={"storage": "nosuch://me:hunter2secret@host/db"}).hyperparameter_search(space, n_trials=1)
    assert "got 'nosuch://me:***@host/db'" in str(caught.value)
    assert "hunter2secret" not in str(caught.value)
