"""A search: what it tries, what it gives, and what it leaves alone."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch

import trainer_core
from trainer_core import DataError, ModelError, PluginError, SettingsError, Signal, Trainer, TrainerCallback
from trainer_core.testing import PluginConformance, TinyModel, tiny_dataset
from trainer_core_tuning import BestRun, Tuning


class TestTuning(PluginConformance):
    plugin_type = Tuning


def accuracy(outputs):
    return {"accuracy": float((outputs.predictions.argmax(-1) == outputs.label_ids).mean())}


# What it tries and gives --------------------------------------------------------------------------------------------


def test_the_best_run_is_the_one_with_the_least_loss(small, space, study, tmp_path):
    best = small().hyperparameter_search(space, n_trials=4)
    trials = study().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    least = min(trials, key=lambda trial: trial.value)
    assert type(best) is BestRun is trainer_core.BestRun
    assert (best.run_id, best.objective, best.hyperparameters) == (str(least.number), least.value, least.params)
    assert best.run_summary["settings"] == least.params
    assert best.run_summary["metrics"]["eval_loss"] == least.value
    assert best.run_summary["output_dir"] == str(tmp_path / "out" / f"run-{least.number}")
    assert best.run_summary["num_trials"] == 4


def test_each_trial_is_the_run_that_these_settings_would_be(small, space, study, tmp_path):
    small().hyperparameter_search(space, n_trials=2)
    for trial in study().trials:
        alone = small(output_dir=tmp_path / f"alone-{trial.number}", **trial.params)
        alone.train()
        assert alone.evaluate()["eval_loss"] == trial.value


def test_the_same_seed_tries_the_same_and_another_seed_does_not(small, space, study, tmp_path):
    def found(folder, seed):
        small(output_dir=tmp_path / folder, seed=seed, tuning={"sampler_options": {"n_startup_trials": 2}}) \
            .hyperparameter_search(space, n_trials=3)  # fmt: skip
        url = f"sqlite:///{tmp_path}/{folder}/tuning.db"
        return [(one.params, one.value) for one in optuna.load_study(study_name="tuning", storage=url).trials]

    first = found("one", 3)
    assert found("two", 3) == first
    assert found("three", 4) != first
    assert len({tuple(params.values()) for params, _ in first}) == 3


def test_the_space_by_default_is_that_of_the_original(small, study):
    best = small(max_steps=1).hyperparameter_search(n_trials=1)
    (trial,) = study().trials
    assert trial.distributions == {
        "learning_rate": optuna.distributions.FloatDistribution(1e-6, 1e-4, log=True),
        "num_train_epochs": optuna.distributions.IntDistribution(1, 5),
        "seed": optuna.distributions.IntDistribution(1, 40),
        "per_device_train_batch_size": optuna.distributions.CategoricalDistribution((4, 8, 16, 32, 64)),
    }
    assert best.hyperparameters == trial.params


def test_a_trial_has_the_settings_of_plugins_and_turns_plugins_on(small, tmp_path):
    seen = []

    class Probe:
        def on_train_begin(self, trainer):
            seen.append((sorted(trainer.bus.members), trainer.args.logging_steps, Path(trainer.args.output_dir)))

    trainer = small(installed=["logging"], given={"plugins": [Probe()]}, logging=None)
    trainer.hyperparameter_search(lambda trial: {"logging_steps": trial.suggest_int("every", 5, 5)}, n_trials=1)
    assert seen == [(["Probe", "logging", "tuning", "tuning_trial"], 5, tmp_path / "out" / "run-0")]
    assert (tmp_path / "out" / "run-0" / "log.jsonl").is_file()
    assert (trainer.args.logging_steps, sorted(trainer.bus.members)) == (None, ["Probe", "tuning"])


def test_the_model_may_be_a_part_of_the_space(small, study):
    def model_init(trial):
        model = TinyModel()
        model.dropout.p = 0.1 if trial is None else trial.suggest_float("dropout", 0.0, 0.9)
        return model

    best = small(given={"model_init": model_init}).hyperparameter_search(lambda trial: {}, n_trials=3)
    trials = study().trials
    assert [list(trial.params) for trial in trials] == [["dropout"]] * 3
    assert len({trial.value for trial in trials}) == 3
    assert (list(best.hyperparameters), best.run_summary["settings"]) == (["dropout"], {})


def test_runs_are_named_by_hp_name_and_never_share_a_folder(small, space, study, tmp_path):
    small().hyperparameter_search(space, n_trials=2, hp_name=lambda trial: "bold")
    assert [trial.user_attrs["run"] for trial in study().trials] == ["bold", "bold-1"]
    assert {"bold", "bold-1"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("options", "settings", "names"),
    [
        ({"run_name": "mine"}, {}, ["mine-run-0", "mine-run-1"]),
        ({"run_name": "mine"}, {"run_name": "other"}, ["other", "other"]),
        ({"run_name": "mine"}, {"report_to": "none"}, [None, None]),
        ({}, {}, [None, None]),
    ],
)
def test_trackers_are_told_a_name_a_trial(options, settings, names, small):
    seen = []

    class Probe:
        def on_train_begin(self, trainer):
            seen.append(trainer.args.run_name)

    options = {"report_to": "tensorboard", "max_steps": 1, **options}
    trainer = small(installed=["trackers"], given={"plugins": [Probe()]}, **options)
    trainer.hyperparameter_search(lambda trial: settings, n_trials=2)
    assert (seen, trainer.args.run_name) == (names, options.get("run_name"))


def test_the_state_of_a_run_names_its_trial(small, space, study):
    seen = []

    class Watcher(TrainerCallback):
        def on_train_begin(self, args, state, control, **context):
            seen.append((state.is_hyper_param_search, state.trial_name, state.trial_params))

    trainer = small(given={"callbacks": [Watcher]})
    trainer.hyperparameter_search(space, n_trials=1)
    trainer.train()
    assert seen == [(True, "run-0", study().trials[0].params), (False, None, None)]


def test_a_subclass_with_its_own_constructor_and_loss_is_searched(small, space, study):
    class Own(Trainer):
        def __init__(self, factor, **arguments):
            self.factor = factor
            self.losses = 0
            super().__init__(**arguments)

        def compute_loss(self, model, inputs, return_outputs=False):
            self.losses += 1
            outputs = model(**inputs)
            return (outputs["loss"] * self.factor, outputs) if return_outputs else outputs["loss"] * self.factor

    trainer = small(kind=lambda **given: Own(0.0, **given))
    assert trainer.hyperparameter_search(space, n_trials=2).objective == 0.0
    assert trainer.losses == 0


def test_several_objectives_give_the_trade_offs(small, space, study):
    runs = small(given={"compute_metrics": accuracy}).hyperparameter_search(
        space,
        lambda metrics: (metrics["eval_loss"], metrics["eval_accuracy"]),
        n_trials=4,
        direction=["minimize", "maximize"],
    )
    known = study()
    assert [direction.name for direction in known.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert [(run.run_id, run.objective) for run in runs] == [(str(one.number), one.values) for one in known.best_trials]


def test_more_is_better_when_the_direction_says_so(small, space, study):
    best = small().hyperparameter_search(space, lambda metrics: metrics["eval_loss"], n_trials=3, direction="maximize")
    assert best.objective == max(trial.value for trial in study().trials)


def test_callbacks_of_the_user_see_every_trial_and_begin_afresh(small, space):
    class Counter(TrainerCallback):
        def __init__(self):
            self.steps, self.ends = 0, []

        def on_step_end(self, args, state, control, **context):
            self.steps += 1

        def on_train_end(self, args, state, control, **context):
            self.ends.append(self.steps)

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    counter = Counter()
    small(given={"callbacks": [counter]}).hyperparameter_search(space, n_trials=3)
    assert (counter.ends, counter.steps) == ([12, 12, 12], 0)


def test_the_callers_trainer_is_as_it_was(small, space):
    trainer = small(given={"callbacks": [TrainerCallback]})
    trainer.train()
    weights = copy.deepcopy(trainer.model.state_dict())
    random = torch.get_rng_state()
    before = dict(vars(trainer))
    trainer.hyperparameter_search(space, n_trials=2)
    assert vars(trainer) == before
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in weights.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_ordinary_run_does_not_import_optuna():
    code = (
        "import sys; from trainer_core.testing import run; run(installed=['tuning']); "
        "print([name for name in ('optuna', 'sqlalchemy', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Which evaluation counts --------------------------------------------------------------------------------------------


def evaluations(trainer):
    """Makes a trainer note the update of each evaluation."""
    seen = []

    class Noting(type(trainer)):
        def evaluation_loop(self, *args, **options):
            output = super().evaluation_loop(*args, **options)
            seen.append((self.state.global_step, output.metrics["eval_loss"]))
            return output

    trainer.__class__ = Noting
    return seen


def test_the_last_evaluation_counts_and_is_not_repeated(small, space):
    trainer = small()
    seen = evaluations(trainer)
    best = trainer.hyperparameter_search(space, n_trials=1)
    assert [step for step, _ in seen] == [6, 12]
    assert best.objective == seen[-1][1]


@pytest.mark.parametrize("options", [{"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 8}])
def test_a_trial_whose_last_update_has_no_evaluation_is_evaluated_at_its_end(options, small, space):
    trainer = small(**options)
    seen = evaluations(trainer)
    best = trainer.hyperparameter_search(space, n_trials=1)
    assert [step for step, _ in seen][-1] == 12
    assert best.objective == seen[-1][1]


def test_the_best_model_counts_where_it_is_brought_back(small, tmp_path):
    def bad_at_last(trial):
        return {"learning_rate": trial.suggest_float("learning_rate", 3.0, 3.0)}

    options = {"load_best_model_at_end": True, "save_strategy": "epoch", "num_train_epochs": 4}
    trainer = small(installed=["checkpointing"], lr_scheduler_type="constant", **options)
    seen = evaluations(trainer)
    best = trainer.hyperparameter_search(bad_at_last, n_trials=1)
    losses = [loss for _, loss in seen]
    assert (best.objective, len(losses)) == (min(losses), 4)
    assert best.objective < losses[-1]


def test_several_datasets_count_together(small, space, study):
    data = {"a": tiny_dataset(8, seed=1), "b": tiny_dataset(8, seed=2)}
    best = small(given={"eval_dataset": data}).hyperparameter_search(space, n_trials=1)
    (trial,) = study().trials
    metrics = best.run_summary["metrics"]
    assert best.objective == metrics["eval_a_loss"] + metrics["eval_b_loss"]
    assert list(trial.intermediate_values) == [6]


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learning_rat": 1.0}, "learning_rat: .*Did you mean 'learning_rate'?"),
        ({"learning_rate": -1.0}, "learning_rate: must be .*, got -1.0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: must be at least 1, got 0"),
        ({"output_dir": "elsewhere"}, "hp_space: each trial has a folder of its own, got output_dir='elsewhere'"),
        ([1], r"hp_space: must return names of settings with their values, got \[1\]"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_trained(settings, told, small, states, tmp_path):
    with pytest.raises(SettingsError, match=told):
        small().hyperparameter_search(lambda trial: settings, n_trials=3)
    assert states() == ["FAIL"]
    assert not (tmp_path / "out" / "run-0").exists()


@pytest.mark.parametrize("settings", [{"push_to_hub": True}, {"hub_push": {"push": True}}])
def test_a_trial_that_would_be_pushed_is_refused_before_it_trains(settings, small, states, tmp_path):
    trainer = small(installed=["hub_push"])
    with pytest.raises(SettingsError, match=r"hyperparameter_search: push_to_hub=True would push every trial. Set"):
        trainer.hyperparameter_search(lambda trial: settings | {"hub_strategy": "end"}, n_trials=3)
    assert states() == ["FAIL"]
    assert not (tmp_path / "out" / "run-0").exists()


def test_a_model_init_that_gives_one_model_again_is_refused(small, space, states):
    model, trained = TinyModel(), []

    class Probe:
        def on_step_end(self, trainer):
            trained.append(trainer.state.trial_name)

    def model_init(trial):
        return TinyModel() if trial is None else model

    trainer = small(given={"model_init": model_init, "plugins": [Probe()]}, max_steps=1)
    with pytest.raises(ModelError) as caught:
        trainer.hyperparameter_search(space, n_trials=3)
    told = "model_init: must make a new model each time, got a TinyModel in trial 1 that it has given before. "
    assert str(caught.value) == f"{told}Make the model in model_init."
    assert (states(), trained) == (["COMPLETE", "FAIL"], ["run-0"])


def test_a_model_init_that_gives_the_callers_model_is_refused_in_the_first_trial(small, space, states):
    model = TinyModel()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="model_init: must make a new model each time, got a TinyModel in trial 0"):
        small(given={"model_init": lambda: model}).hyperparameter_search(space, n_trials=3)
    assert states() == ["FAIL"]
    assert all(before[name].equal(value) for name, value in model.state_dict().items())


def test_the_note_of_a_wrong_setting_names_the_trial(small):
    with pytest.raises(SettingsError) as caught:
        small().hyperparameter_search(lambda trial: {"max_steps": trial.suggest_int("max_steps", -7, -7)}, n_trials=1)
    assert "raised in trial 0 of the search, with max_steps=-7" in caught.value.__notes__


def test_a_folder_of_another_search_is_not_written_into(small, space, tmp_path):
    (tmp_path / "out" / "run-0").mkdir(parents=True)
    (tmp_path / "out" / "run-0" / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match=re.escape(f"{tmp_path / 'out' / 'run-0'} is there already")):
        small().hyperparameter_search(space, n_trials=1)
    assert [path.name for path in (tmp_path / "out" / "run-0").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["", "a/b", "..", None])
def test_a_run_is_named_like_a_folder(name, small, space):
    with pytest.raises(SettingsError, match=re.escape(f"hp_name: must return the name of a folder, got {name!r}")):
        small().hyperparameter_search(space, n_trials=1, hp_name=lambda trial: name)


def test_two_searches_do_not_share_a_folder_at_one_time(small, space):
    trainer = small()
    with trainer_core.owned(Path(trainer.args.output_dir), trainer.ranks), pytest.raises(
        trainer_core.OwnershipError, match="another run owns it"
    ):  # fmt: skip
        small().hyperparameter_search(space, n_trials=1)


def test_a_search_within_a_run_is_refused(small, space):
    class Asking:
        def on_step_end(self, trainer):
            trainer.hyperparameter_search(space)

    with pytest.raises(SettingsError, match="hyperparameter_search: a run is on, and a hook asked for a search"):
        small(given={"plugins": [Asking()]}).train()


def test_a_plugin_that_is_off_does_not_search(small, space):
    trainer = small()
    trainer.bus.unregister("tuning")
    with pytest.raises(PluginError, match=r"Install trainer-core-tuning or unblock 'tuning'"):
        trainer.hyperparameter_search(space)


# Trials that fail ---------------------------------------------------------------------------------------------------


class Breaking:
    """Raises in the second trial."""

    def __init__(self, error):
        self.error = error

    def on_step_end(self, trainer):
        if trainer.state.trial_name == "run-1":
            raise self.error


def test_an_error_ends_the_search_with_a_note_and_the_search_can_go_on(small, space, states):
    trainer = small(given={"plugins": [Breaking(MemoryError("too much"))]})
    with pytest.raises(MemoryError) as caught:
        trainer.hyperparameter_search(space, n_trials=3)
    notes = "\n".join(caught.value.__notes__)
    assert re.search(r"raised in trial 1 of the search, with learning_rate=0\.\d+\n", notes)
    assert states() == ["COMPLETE", "FAIL"]
    small().hyperparameter_search(space, n_trials=3)
    assert states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("way", ["setting", "argument"])
def test_an_error_that_is_caught_fails_its_trial_only(way, small, space, states, rows, told):
    tuning = {"catch": ["MemoryError"]} if way == "setting" else {}
    options = {"catch": (MemoryError,)} if way == "argument" else {}
    trainer = small(given={"plugins": [Breaking(MemoryError("too much"))]}, tuning=tuning)
    best = trainer.hyperparameter_search(space, n_trials=3, **options)
    assert (states(), best.run_summary["num_trials"]) == (["COMPLETE", "FAIL", "COMPLETE"], 3)
    assert [row["why"] for row in rows()] == ["", "MemoryError: too much", ""]
    assert told()[0].startswith("trial 1: failed, MemoryError: too much; learning_rate=")


def test_a_token_in_an_error_is_kept_out_of_database_and_table(small, space, rows, study, told):
    token = "hf_" + "a1" * 17
    trainer = small(given={"plugins": [Breaking(MemoryError(f"refused {token}"))]}, tuning={"catch": ["MemoryError"]})
    trainer.hyperparameter_search(space, n_trials=2)
    assert rows()[1]["why"] == study().trials[1].user_attrs["why"] == "MemoryError: refused ***"
    assert told()[0].startswith("trial 1: failed, MemoryError: refused ***; ")


def test_a_run_that_diverges_fails_its_trial_only(small, states, rows):
    class Poison:
        def on_step_begin(self, trainer):
            if trainer.state.trial_name == "run-0":
                trainer.model.head.weight.data.fill_(float("nan"))

    def flat(trial):
        return {"learning_rate": trial.suggest_float("learning_rate", 0.1, 0.2)}

    small(given={"plugins": [Poison()]}).hyperparameter_search(flat, n_trials=2)
    assert states() == ["FAIL", "COMPLETE"]
    assert rows()[0]["why"].startswith("NonFiniteLossError: ")


def test_an_objective_that_is_nan_fails_its_trial_and_is_said(small, space, states, told):
    values = iter([float("nan"), float("nan"), 1.0, 2.0])
    tuning = {"pruner": "none"}
    best = small(tuning=tuning).hyperparameter_search(space, lambda metrics: next(values), n_trials=2)
    assert (states(), best.run_id, best.objective) == (["FAIL", "COMPLETE"], "1", 2.0)
    assert told()[0].startswith("trial 0: failed, the objective is NaN, got nan; learning_rate=")


def test_a_search_without_any_objective_says_so(small, space):
    with pytest.raises(PluginError, match="no trial gave an objective, got 2 fail"):
        small().hyperparameter_search(space, lambda metrics: float("nan"), n_trials=2)


def test_an_objective_that_is_no_number_ends_the_search(small, space, states):
    with pytest.raises(DataError, match="compute_objective: must return one number, got 'low'"):
        small().hyperparameter_search(space, lambda metrics: "low", n_trials=2)
    assert states() == ["FAIL"]


# Pruning ------------------------------------------------------------------------------------------------------------


def worse_and_worse():
    """Gives an objective that is worse in each trial: two evaluations a trial."""
    calls = iter(range(100))
    return lambda metrics: float(next(calls) // 2)


def test_a_bad_trial_is_pruned_at_its_evaluation_and_the_journal_says_why(small, space, states, stops, rows):
    tuning = {"pruner_options": {"n_startup_trials": 1}}
    best = small(tuning=tuning).hyperparameter_search(space, worse_and_worse(), n_trials=2)
    assert (states(), best.objective) == (["COMPLETE", "PRUNED"], 0.0)
    why = "MedianPruner ends trial 1: objective 1 at step 6, best so far 0 of trial 0"
    assert {(step, by, told) for step, by, told in stops("run-1")} == {(6, "tuning", why)}
    assert rows()[1]["why"] == why


def test_no_trial_is_pruned_without_a_pruner_or_at_its_last_update(small, space, states, study):
    small(tuning={"pruner": "none"}).hyperparameter_search(space, worse_and_worse(), n_trials=2)
    assert states() == ["COMPLETE", "COMPLETE"]
    assert [list(trial.intermediate_values) for trial in study().trials] == [[6], [6]]


def test_a_pruner_may_be_an_object(small, space, states):
    class Always(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number > 0

    small().hyperparameter_search(space, n_trials=3, pruner=Always())
    assert states() == ["COMPLETE", "PRUNED", "PRUNED"]


def test_a_pruned_trial_ends_like_a_run_that_was_stopped(small, space):
    seen = []

    class End:
        def on_train_end(self, trainer):
            seen.append((trainer.outcome, trainer.state.global_step, trainer.state.stopped_by))

    trainer = small(given={"plugins": [End()]}, tuning={"pruner": "threshold", "pruner_options": {"upper": 0.0}})
    with pytest.raises(PluginError, match="no trial gave an objective, got 1 pruned"):
        trainer.hyperparameter_search(space, n_trials=1)
    ((outcome, step, by),) = seen
    assert (outcome, step, by["by"]) == ("stopped", 6, "tuning")


def test_a_run_that_another_plugin_stops_is_complete(small, space, states):
    class Early:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 5:
                trainer.request(Signal.STOP, by="early", why="enough")

    best = small(given={"plugins": [Early()]}).hyperparameter_search(space, n_trials=1)
    assert (states(), best.run_summary["metrics"]["epoch"]) == (["COMPLETE"], pytest.approx(5 / 6))
