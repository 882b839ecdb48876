"""When a run that no longer improves ends, and what is refused before it begins."""

from __future__ import annotations

import logging
import math
import sys
from typing import ClassVar

import pytest

from trainer_core import SettingsError, Signal, Trainer, TrainingArguments
from trainer_core.testing import PluginConformance, tiny_dataset
from trainer_core_early_stopping import EarlyStopping, EarlyStoppingSettings

NAN, INF = math.nan, math.inf


class TestDefaults(PluginConformance):
    plugin_type = EarlyStopping
    flat: ClassVar = {"early_stopping": True, "eval_strategy": "epoch"}


class TestFlatNames(PluginConformance):
    plugin_type = EarlyStopping
    flat: ClassVar = {"early_stopping_patience": 2, "eval_strategy": "steps", "eval_steps": 5}


class TestAllSettings(PluginConformance):
    plugin_type = EarlyStopping
    settings: ClassVar = {"patience": 3, "threshold": 0.1, "metric": "accuracy", "greater_is_better": True}
    flat: ClassVar = {"eval_strategy": "epoch"}


# When it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "threshold", "scores", "step"),
    [
        (1, 0.0, [0.5, 0.6, 0.7, 0.6], 4),
        (2, 0.0, [0.5, 0.6, 0.5, 0.5], 4),
        (2, 0.0, [0.5, 0.5, 0.5], 3),  # a tie is no improvement
        (2, 0.0, [0.5, 0.4, 0.6, 0.5, 0.55], 5),  # an improvement begins the count anew
        (2, 0.0, [0.9, 0.5, 0.6], 3),  # better than the last is not better than the best
        (2, 0.0, [0.05 * k for k in range(12)], 12),
        (2, 0.1, [0.3 + 0.05 * k for k in range(12)], 12),  # slow gains add up
        (1, 0.1, [0.3 + 0.05 * k for k in range(12)], 2),
        (2, 0.11, [0.3 + 0.05 * k for k in range(12)], 3),
        (3, 0.11, [0.3 + 0.05 * k for k in range(12)], 12),
        (1, 0.1, [0.5, 0.6, 0.7, 0.75], 4),  # a gain of just the threshold is one
        (2, 0.1, [0.5, 0.59, 0.59], 3),
        (2, 0.0, [NAN, 0.1, NAN, 0.2, NAN, NAN], 6),
        (2, 0.0, [0.5, NAN, INF], 3),
        (3, 0.0, [NAN, NAN, NAN], 3),
        (2, 0.0, [-INF, 0.1, 0.2, 0.1, 0.1], 5),
    ],
)
def test_patience_is_counted_against_the_last_value_that_improved(make, end, patience, threshold, scores, step):
    for direction, sign in ((True, 1), (False, -1)):
        trainer = make(
            [sign * score for score in scores],
            early_stopping_patience=patience,
            early_stopping_threshold=threshold,
            greater_is_better=direction,
        )
        outcome = "completed" if step == 12 else "stopped"
        assert end(trainer)[:2] == (step, outcome), direction


@pytest.mark.parametrize(
    ("options", "scores", "why"),
    [
        ({}, [0.5, 0.6, 0.6, 0.6], "eval_score has not risen above its best, 0.6 at step 2, in 2 evaluations"),
        (
            {"greater_is_better": False, "early_stopping_threshold": 0.05},
            [0.5, 0.48, 0.47],
            "eval_score has not fallen 0.05 below its mark, 0.5 at step 1, in 2 evaluations",
        ),
        ({"early_stopping_patience": 1}, [NAN], "eval_score was no finite number in 1 evaluation"),
    ],
)
def test_the_journal_says_metric_best_value_and_step(make, end, journal, options, scores, why):
    trainer = make(scores, **{"early_stopping_patience": 2, **options})
    step = len(scores)
    assert end(trainer) == (step, "stopped", "early_stopping", why)
    assert journal(trainer) == [(step, "early_stopping", why)]
    assert trainer.state.stopped_by == {"by": "early_stopping", "why": why}
    assert f"asked by early_stopping: {why}." in trainer.explain(step)


def test_what_is_no_improvement_is_said_and_a_number_that_is_none_is_a_warning(make, caplog):
    caplog.set_level(logging.INFO, "trainer_core.early_stopping")
    make([0.5, 0.4, NAN, 0.6, -INF, 0.6, 0.6], early_stopping_patience=3).train()
    told = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "trainer_core.early_stopping"]
    assert told == [
        ("INFO", "step 2: eval_score is 0.4 and counts as no improvement (1 of 3)."),
        ("WARNING", "step 3: eval_score is nan and counts as no improvement (2 of 3)."),
        ("WARNING", "step 5: eval_score is -inf and counts as no improvement (1 of 3)."),
        ("INFO", "step 6: eval_score is 0.6 and counts as no improvement (2 of 3)."),
        ("INFO", "step 7: eval_score is 0.6 and counts as no improvement (3 of 3)."),
    ]


def test_the_loss_is_watched_where_no_metric_is_named(make, end):
    options = {"metric_for_best_model": None, "greater_is_better": None, "learning_rate": 0.0}
    step, _, by, why = end(make(early_stopping=True, **options))
    assert (step, by) == (2, "early_stopping")
    assert why.startswith("eval_loss has not fallen below its best, ")


def test_a_metric_of_its_own_goes_before_that_of_the_best_model(make, end):
    own = {"metric": "score", "greater_is_better": False, "patience": 2}
    options = {"metric_for_best_model": "loss", "greater_is_better": False, "early_stopping": own}
    assert end(make([0.5, 0.6, 0.7], **options))[3].startswith(
        "eval_score has not fallen below its best, 0.5 at step 1"
    )


def test_an_evaluation_before_training_counts(make, end):
    trainer = make([0.4, 0.4, 0.5], eval_on_start=True, early_stopping_patience=2)  # 0.5 before training
    assert end(trainer)[::3] == (2, "eval_score has not risen above its best, 0.5 at step 0, in 2 evaluations")


def test_an_evaluation_that_a_plugin_asks_for_counts(make, end):
    class Asking:
        def on_step_end(self, trainer):
            if trainer.state.global_step in (3, 5):
                trainer.request(Signal.EVAL, by="asking", why="the test says so")

    trainer = make([0.5], Asking(), eval_steps=4, early_stopping_patience=2)
    assert end(trainer)[0] == 5


def test_evaluations_of_something_else_do_not_count(make, end):
    class Curious:
        def on_step_end(self, trainer):
            trainer.evaluate(tiny_dataset(2, seed=5))
            trainer.evaluate(trainer.train_dataset, metric_key_prefix="train")

        def on_new_best(self, trainer):
            trainer.evaluate(tiny_dataset(2, seed=6))

    trainer = make([0.5], Curious(), eval_steps=3, early_stopping_patience=2)
    trainer.evaluate()
    assert end(trainer)[0] == 9
    trainer.evaluate()
    assert trainer.bus.members["early_stopping"].plugin.state_dict()["failures"] == 2


def test_of_several_datasets_the_one_of_the_metric_counts(make, end):
    def measure(prediction):  # the German score rises, the French one falls
        step = trainer.state.global_step
        return {"score": -step if len(prediction.label_ids) == 2 else step}

    given = {"eval_dataset": {"french": tiny_dataset(2), "german": tiny_dataset(3)}, "compute_metrics": measure}
    trainer = make(given=given, metric_for_best_model="french_score", early_stopping_patience=2)
    assert end(trainer)[::3] == (3, "eval_french_score has not risen above its best, -1 at step 1, in 2 evaluations")
    trainer = make(given=given, metric_for_best_model="german_score", early_stopping_patience=2)
    assert end(trainer)[:2] == (12, "completed")


def test_a_metric_that_an_overridden_evaluate_adds_is_heard(make, end):
    class Adding(Trainer):
        def evaluate(self, *args, **kwargs):
            return super().evaluate(*args, **kwargs) | {"eval_added": -1.0 * self.state.global_step}

    assert end(make(kind=Adding, metric_for_best_model="added", early_stopping_patience=2))[0] == 3


def test_a_second_call_of_train_begins_anew(make, end):
    trainer = make([0.5], early_stopping_patience=3)
    assert end(trainer)[0] == 4
    assert end(trainer)[0] == 4


def test_it_ends_after_the_save_of_its_update(make, end, tmp_path):
    trainer = make([0.5], save_strategy="steps", save_steps=3, early_stopping_patience=2)
    assert end(trainer)[0] == 3
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3"]


def test_a_metric_that_goes_missing_ends_the_run_with_its_name(make):
    class Losing(Trainer):
        def evaluate(self, *args, **kwargs):
            metrics = super().evaluate(*args, **kwargs)
            return {"eval_scores": 1.0} if self.state.global_step == 2 else metrics

    own = {"metric": "score", "greater_is_better": True, "patience": 5}
    trainer = make(kind=Losing, metric_for_best_model=None, early_stopping=own)
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == [
        "early_stopping.metric: no evaluation gives this metric, got 'eval_score'. Did you mean 'scores'? "
        "Evaluations give scores; compute it in compute_metrics or name one of these."
    ]
    assert trainer.state.global_step == 2


def test_a_metric_that_is_no_number_is_refused_by_its_name(make):
    own = {"metric": "score", "greater_is_better": True}
    trainer = make([[1, 2]], metric_for_best_model=None, early_stopping=own)
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == [
        "early_stopping.metric: eval_score is no number, got [1, 2]. Give a number in compute_metrics."
    ]


# What the settings say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping_patience": 1},
        {"early_stopping": True},
        {"early_stopping": {}},
        {"early_stopping": EarlyStoppingSettings()},
        {"early_stopping": True, "early_stopping_threshold": 0.0},
    ],
    ids=str,
)
def test_each_way_to_turn_it_on_means_the_same(options):
    args = TrainingArguments(eval_strategy="epoch", **options)
    assert args.early_stopping == EarlyStoppingSettings()
    assert (args.early_stopping_patience, args.early_stopping_threshold) == (1, 0.0)


@pytest.mark.parametrize("options", [{}, {"early_stopping": None}, {"early_stopping_patience": None}], ids=str)
def test_it_is_off_without_being_asked_for(options):
    args = TrainingArguments(**options)
    assert (args.early_stopping, args.early_stopping_patience) == (None, None)


def mistakes(**options):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**options)
    return caught.value.problems


EPOCH = {"eval_strategy": "epoch"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"early_stopping_patience": 2},
            "early_stopping: needs evaluations, and there are none, got eval_strategy='no'. Set eval_strategy.",
        ),
        (
            EPOCH | {"early_stopping_patience": 0},
            "early_stopping_patience: must be at least 1, got 0 (from keyword). Use 1 or more.",
        ),
        (
            EPOCH | {"early_stopping": {"threshold": -0.1}},
            "early_stopping.threshold: must be at least 0, got -0.1 (from keyword). Use 0 or more.",
        ),
        (
            EPOCH | {"early_stopping_threshold": 0.1},
            "early_stopping_threshold: belongs to 'early_stopping', and it is off by default, got 0.1 (from keyword). "
            "Set early_stopping_patience, or leave it out.",
        ),
        (
            EPOCH | {"early_stopping": {"metric": "score"}},
            "early_stopping.greater_is_better: is needed, because the name 'score' does not tell whether more is "
            "better, got None. Set it to True or False.",
        ),
        (
            EPOCH | {"early_stopping_patience": 1, "metric_for_best_model": "score"},
            "greater_is_better: is needed, because the name 'score' does not tell whether more is better, got None. "
            "Set it to True or False.",
        ),
        (
            EPOCH
            | {"early_stopping": {"metric": "eval_f1", "greater_is_better": False}, "metric_for_best_model": "f1"},
            "early_stopping.greater_is_better: contradicts greater_is_better=True for the same metric, got False. "
            "Leave it out.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(options, problem):
    assert mistakes(**options) == [problem]


@pytest.mark.parametrize(
    ("options", "direction"),
    [
        ({"early_stopping": {"metric": "accuracy"}}, True),
        ({"early_stopping": {"metric": "eval_french_loss"}}, False),
        ({"early_stopping": {"metric": "score", "greater_is_better": True}}, True),
        ({"early_stopping": {"metric": "score"}, "metric_for_best_model": "score", "greater_is_better": True}, True),
        ({"early_stopping": {"metric": "f1"}, "metric_for_best_model": "loss"}, True),
        ({"early_stopping": True, "metric_for_best_model": "f1"}, True),
        ({"early_stopping": {"greater_is_better": True}}, True),
        ({"early_stopping": True, "greater_is_better": True}, True),
        ({"early_stopping": True}, False),
    ],
    ids=str,
)
def test_the_direction_is_known(make, options, direction):
    trainer = make(**{"metric_for_best_model": None, "greater_is_better": None, "eval_strategy": "epoch", **options})
    assert trainer.bus.members["early_stopping"].plugin._watched(trainer).greater_is_better is direction


# What the plan says -----------------------------------------------------------------------------------------------


def test_a_metric_that_no_evaluation_gives_is_refused_before_training(make):
    own = {"metric": "scor", "greater_is_better": True}
    trainer = make(early_stopping=own)
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == [
        "early_stopping.metric: no evaluation gives this metric, got 'eval_scor'. Did you mean 'score'? "
        "Evaluations give loss, score; compute it in compute_metrics or name one of these."
    ]
    assert trainer.state.global_step == 0


def test_the_metric_of_the_best_model_is_refused_once(make):
    with pytest.raises(SettingsError) as caught:
        make(metric_for_best_model="scor", early_stopping_patience=1).train()
    assert len(caught.value.problems) == 1


def test_of_several_datasets_one_must_be_named(make):
    datasets = {"french": tiny_dataset(2), "german": tiny_dataset(2, seed=1)}
    with pytest.raises(SettingsError) as caught:
        make(given={"eval_dataset": datasets}, early_stopping=True, metric_for_best_model=None).train()
    assert caught.value.problems == [
        "metric_for_best_model: no evaluation gives this metric, got 'eval_loss'. "
        "Evaluations give french_loss, french_score, german_loss, german_score; "
        "compute it in compute_metrics or name one of these."
    ]


@pytest.mark.parametrize(
    ("options", "row"),
    [
        (
            {"early_stopping_patience": 3},
            "at moments not known before the run, by early_stopping, when eval_score has not improved "
            "in 3 evaluations, not before step 3",
        ),
        (
            {"early_stopping_patience": 1, "eval_on_start": True},
            "at moments not known before the run, by early_stopping, when eval_score has not improved in 1 evaluation, "
            "not before step 0",
        ),
        (
            {"early_stopping_patience": 3, "eval_strategy": "epoch"},
            "never, by early_stopping, when eval_score has not improved in 3 evaluations, and the run has 1",
        ),
    ],
)
def test_the_plan_says_when_the_run_may_end(make, options, row):
    assert dict(make(**options).plan().rows())["stop"] == row


def test_the_plan_of_data_without_a_length_knows_no_step(make):
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(tiny_dataset())

    given = {"train_dataset": Stream()}
    trainer = make(given=given, early_stopping_patience=1, eval_strategy="epoch", max_steps=12)
    assert dict(trainer.plan().rows())["stop"] == (
        "at moments not known before the run, by early_stopping, when eval_score has not improved in 1 evaluation"
    )


def test_a_plugin_added_during_the_run_judges_from_there(make, end):
    class Adding:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 4:
                trainer.add_callback(EarlyStopping(EarlyStoppingSettings(patience=2)))

    assert end(make([0.5], Adding()))[0] == 6


# Crashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the crash matrix works on Linux only")
def test_a_run_that_stops_early_survives_a_kill_at_sampled_places():
    from trainer_core.testing.crash import crash_matrix

    flat = {"early_stopping_patience": 2, "max_steps": 12, "eval_steps": 1, "learning_rate": 0.6}
    assert crash_matrix(EarlyStopping, flat=flat, kinds=["kills"], sample=12).failures == 0
