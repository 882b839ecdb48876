"""A resumed run ends at the update, and for the reason, of the run that nobody cut; a stopped one is finished."""

from __future__ import annotations

import logging

import pytest

from trainer_core import EarlyStoppingCallback, Signal
from trainer_core_early_stopping import stop_at

SCORES = [0.5, 0.6, 0.6, 0.61, 0.55, 0.7, 0.72, 0.71, 0.6, 0.3, 0.2, 0.1]
CASES = {
    "patience": ({"early_stopping_patience": 2}, 9),
    "threshold": ({"early_stopping_patience": 3, "early_stopping_threshold": 0.1}, 5),
    "slow gains": ({"early_stopping_patience": 4, "early_stopping_threshold": 0.1}, 10),
    "late": ({"early_stopping_patience": 3}, 10),
    "callback": ({}, 9),
    "goal": ({"stop_at": {"at_least": 0.7}}, 6),
    "samples": ({"stop_at": {"max_samples": 15}}, 8),
    "tokens": ({"stop_at": {"max_tokens": 50}, "include_num_input_tokens_seen": "all"}, 7),
    "both": ({"early_stopping_patience": 3, "stop_at": {"max_samples": 18}}, 9),
}


def given_of(case):
    return {"callbacks": [EarlyStoppingCallback(2)]} if case == "callback" else {}


def memory(trainer):
    """Gives the state of our plugins, but the clock."""
    states = {name: dict(state) for name, state in trainer.state_dict()["plugins"].items() if name != "checkpointing"}
    for state in states.values():
        state.pop("seconds", None)
    return states


@pytest.mark.parametrize("case", CASES)
def test_a_cut_at_any_evaluation_changes_neither_update_nor_reason(make, end, cut, case):
    options, step = CASES[case]
    whole = make(SCORES, given=given_of(case), folder="whole", **options)
    expected = end(whole)
    assert expected[:2] == (step, "stopped")
    for at in range(1, step + 1):
        first = make(SCORES, cut(at), given=given_of(case), folder=f"cut-{at}", **options)
        assert end(first)[:2] == (at, "interrupted"), at
        again = make(SCORES, given=given_of(case), folder=f"cut-{at}", **options)
        assert end(again, resume_from_checkpoint=True) == expected, at
        assert (again.state.stopped_by, memory(again)) == (whole.state.stopped_by, memory(whole)), at


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_each_checkpoint_of_a_run_leads_to_the_same_end(make, end, tmp_path, strategy):
    """Also one of the same update that was saved before the evaluation: at the end of an epoch."""
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": strategy, "early_stopping_patience": 2}
    options |= {"num_train_epochs": 6, "per_device_train_batch_size": 12, "gradient_accumulation_steps": 1}
    scores = [0.1, 0.1, 0.1, 0.2, 0.1, 0.2, 0.1, 0.1] if strategy == "epoch" else SCORES
    whole = make(scores, folder="whole", **options)
    expected = end(whole)
    assert (expected[0], expected[2]) == ({"epoch": 8, "steps": 9}[strategy], "early_stopping")
    saved = sorted((tmp_path / "whole").glob("checkpoint-*"))
    assert len(saved) >= expected[0] - 1
    for checkpoint in saved:
        again = make(scores, folder=f"from-{checkpoint.name}", **options)
        assert end(again, resume_from_checkpoint=checkpoint) == expected, checkpoint.name
        assert memory(again) == memory(whole), checkpoint.name


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_is_finished(make, end, case):
    options, step = CASES[case]
    options = options | {"num_train_epochs": 2}
    first = make(SCORES, given=given_of(case), **options)
    expected = end(first)
    weights = {name: value.clone() for name, value in first.model.state_dict().items()}
    again = make(SCORES, given=given_of(case), **options)
    assert end(again, resume_from_checkpoint=True) == expected
    assert (again.state.global_step, again.state.num_samples_seen) == (step, first.state.num_samples_seen)
    assert all(weights[name].equal(value) for name, value in again.model.state_dict().items())


@pytest.mark.parametrize(
    ("rule", "larger"),
    [
        ({"early_stopping_patience": 2}, {"early_stopping_patience": 9}),
        ({"stop_at": {"max_samples": 15}}, {"stop_at": {"max_samples": 10_000}}),
        ({"stop_at": {"at_least": 0.7}}, {"stop_at": {"at_least": 0.99}}),
        ({"stop_at": {"max_samples": 15}}, {}),
    ],
)
def test_a_stopped_run_stays_finished_with_a_larger_budget(make, end, rule, larger):
    expected = end(make(SCORES, **rule))
    assert end(make(SCORES, **larger), resume_from_checkpoint=True) == expected


def test_a_run_that_another_stopped_keeps_its_reason(make, end):
    options = {"early_stopping_patience": 3, "stop_at": {"max_samples": 8}}
    expected = end(make([0.5], folder="a", **options))
    assert expected[2] == "stop_at"  # at update 4, as early stopping would
    assert end(make([0.5], folder="a", **options), resume_from_checkpoint=True) == expected


def test_with_another_metric_patience_is_counted_anew_and_said(make, end, cut_later, caplog):
    end(make([0.5], cut_later(3), early_stopping_patience=5, learning_rate=0.0))
    own = {"metric": "loss", "patience": 5}
    again = make([0.5], early_stopping=own, learning_rate=0.0)
    step, _, _, why = end(again, resume_from_checkpoint=True)
    assert (
        "early_stopping: the checkpoint knows the progress of eval_score (more is better), "
        "got eval_loss (less is better). Patience is counted from here."
    ) in caplog.messages
    assert step == 9, why


def test_with_less_patience_the_evaluations_so_far_count(make, end, cut_later):
    end(make([0.5], cut_later(5), early_stopping_patience=9))
    again = make([0.5], early_stopping_patience=3)
    why = "eval_score has not risen above its best, 0.5 at step 1, in 4 evaluations"
    assert end(again, resume_from_checkpoint=True) == (5, "stopped", "early_stopping", why)


def test_turned_on_in_a_resumed_run_it_begins_there(make, end, cut_later):
    end(make([0.5], cut_later(5)))
    assert end(make([0.5], early_stopping_patience=2), resume_from_checkpoint=True)[0] == 8


def test_another_goal_is_judged_by_the_last_evaluation(make, end, cut_later):
    end(make(SCORES, cut_later(4), stop_at={"at_least": 0.9}))
    assert end(make(SCORES, stop_at={"at_least": 0.6}), resume_from_checkpoint=True)[::3] == (
        4,
        "eval_score is 0.61, at least 0.6",
    )
    end(make(SCORES, cut_later(4), folder="other", stop_at={"at_least": 0.9}))
    other = make(SCORES, folder="other", stop_at={"metric": "loss", "at_least": 0.0001})
    assert end(other, resume_from_checkpoint=True)[0] == 5  # of another metric nothing is known


def test_the_clock_goes_on_from_the_checkpoint(make, end, cut, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stop_at, "monotonic", lambda: now[0])

    class Slow:
        def on_step_begin(self, trainer):
            now[0] += 10

    first = make([0.5], Slow(), cut(4), max_time=75)
    assert end(first)[:2] == (4, "interrupted")
    now[0] += 10_000  # nothing trains
    again = make([0.5], Slow(), max_time=75)
    assert end(again, resume_from_checkpoint=True) == (8, "stopped", "stop_at", "max_time, 1m15s, is spent")
    late = make([0.5], Slow(), max_time=75)
    assert end(late, resume_from_checkpoint=True)[0] == 8


def test_a_run_that_was_cut_before_its_time_was_spent_ends_in_the_evaluation_that_it_owed(make, end, cut, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stop_at, "monotonic", lambda: now[0])

    class Slow:
        def on_prediction_step(self, trainer):
            now[0] += 50

    made = {"max_time": 100, "eval_steps": 3}
    assert end(make([0.5], Slow(), cut(6), **made))[:2] == (6, "interrupted")
    resumed = make([0.5], Slow(), **made)
    assert end(resumed, resume_from_checkpoint=True) == (6, "stopped", "stop_at", "max_time, 1m40s, is spent")


def test_nothing_is_said_of_another_metric_where_it_is_the_same(make, end, cut, caplog):
    caplog.set_level(logging.WARNING)
    end(make(SCORES, cut(3), early_stopping_patience=2))
    end(make(SCORES, early_stopping_patience=2), resume_from_checkpoint=True)
    assert [message for message in caplog.messages if "early_stopping" in message] == []


def test_an_evaluation_that_a_cut_postponed_counts_once(make, end, tmp_path):
    class CutBefore:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 3:
                trainer.request(Signal.SAVE, by="cut", why="the test says so")
                trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)

    options = {"early_stopping_patience": 3}
    expected = end(make([0.5], folder="whole", **options))
    first = make([0.5], CutBefore(), folder="cut", **options)
    assert end(first)[:2] == (3, "interrupted")
    assert first.state.last_eval_step == 2
    assert end(make([0.5], folder="cut", **options), resume_from_checkpoint=True) == expected
