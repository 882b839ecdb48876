"""Early stopping as a callback: the same as by the settings, under the name that scripts import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trainer_core
from trainer_core import EarlyStoppingCallback, SettingsError
from trainer_core.testing import only
from trainer_core_early_stopping import EarlyStoppingCallback as Ours


def test_it_is_a_public_name_of_the_library():
    assert trainer_core.EarlyStoppingCallback is EarlyStoppingCallback is Ours


def test_reading_settings_with_it_installed_imports_no_torch():
    code = (
        "import sys; from trainer_core import EarlyStoppingCallback, TrainingArguments; "
        "EarlyStoppingCallback(2); TrainingArguments(early_stopping=True, eval_strategy='epoch', max_time='2h'); "
        "print([name for name in ('torch', 'accelerate', 'transformers') if name in sys.modules])"
    )
    with only("early_stopping", "stop_at"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("callback", [EarlyStoppingCallback, EarlyStoppingCallback(), EarlyStoppingCallback(1, 0.0)])
def test_classes_and_instances_end_a_run(make, end, callback):
    assert end(make([0.5, 0.6, 0.6], given={"callbacks": [callback]})) == (
        3,
        "stopped",
        "EarlyStoppingCallback",
        "eval_score has not risen above its best, 0.6 at step 2, in 1 evaluation",
    )


def test_its_arguments_are_patience_and_threshold(make, end):
    callback = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=0.1)
    assert (callback.early_stopping_patience, callback.early_stopping_threshold) == (2, 0.1)
    scores = [0.3 + 0.05 * k for k in range(7)] + [0.65]
    assert end(make(scores, given={"callbacks": [callback]}))[0] == 9


def test_the_loss_is_watched_without_a_metric_and_no_best_model_is_needed(make, end):
    options = {"metric_for_best_model": None, "greater_is_better": None, "learning_rate": 0.0}
    assert end(make(given={"callbacks": [EarlyStoppingCallback]}, **options))[0] == 2


@pytest.mark.parametrize("patience", [0, -1, 1.5, "3", True, None])
def test_a_wrong_patience_is_refused(patience):
    with pytest.raises(SettingsError) as caught:
        EarlyStoppingCallback(patience)
    assert caught.value.problems == [
        f"EarlyStoppingCallback: early_stopping_patience must be a whole number of at least 1, got {patience!r}. "
        "Use 1 to end the run at the first evaluation without an improvement."
    ]


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf"), "0", False, None])
def test_a_wrong_threshold_is_refused(threshold):
    with pytest.raises(SettingsError) as caught:
        EarlyStoppingCallback(1, threshold)
    assert caught.value.problems == [
        f"EarlyStoppingCallback: early_stopping_threshold must be a number of at least 0, got {threshold!r}. "
        "Use 0.0 to take any better value for an improvement."
    ]


def refused(trainer):
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert trainer.state.global_step == 0
    return caught.value.problems


def test_it_is_refused_without_evaluations(make):
    options = {"eval_strategy": "no", "metric_for_best_model": None, "greater_is_better": None}
    assert refused(make(given={"callbacks": [EarlyStoppingCallback]}, **options)) == [
        "EarlyStoppingCallback: needs evaluations, and there are none, got eval_strategy='no'. Set eval_strategy."
    ]


def test_it_is_refused_together_with_the_settings(make):
    trainer = make(given={"callbacks": [EarlyStoppingCallback(2)]}, early_stopping_patience=3)
    assert refused(trainer) == [
        "EarlyStoppingCallback: early_stopping is on as well, by the settings. "
        "Keep one of the two: take the callback out, or set early_stopping=None."
    ]


def test_two_of_them_end_the_run_at_the_first(make, end):
    callbacks = [EarlyStoppingCallback(9), EarlyStoppingCallback(2)]
    trainer = make([0.5], given={"callbacks": callbacks})
    assert end(trainer)[0] == 3
    assert list(trainer.state_dict()["plugins"]) == ["EarlyStoppingCallback", "EarlyStoppingCallback-2"]


def test_it_is_removed_by_class_instance_and_name(make, end):
    callback = EarlyStoppingCallback()
    for way in (EarlyStoppingCallback, callback, "EarlyStoppingCallback"):
        trainer = make([0.5], given={"callbacks": [callback]})
        trainer.remove_callback(way)
        assert end(trainer)[:2] == (12, "completed")


def test_taking_out_the_callback_leaves_the_plugin(make, end):
    trainer = make([0.5], early_stopping_patience=3)
    assert trainer.pop_callback(EarlyStoppingCallback) is None
    assert end(trainer)[0] == 4


def test_its_plan_is_that_of_the_settings(make):
    trainer = make(given={"callbacks": [EarlyStoppingCallback(3)]})
    assert dict(trainer.plan().rows())["stop"] == (
        "at moments not known before the run, by EarlyStoppingCallback, "
        "when eval_score has not improved in 3 evaluations, not before step 3"
    )
