"""Rules that end a run: which is met first, what the journal says of it, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import pytest
from torch.utils.data import IterableDataset

from trainer_core import SettingsError, Signal, TrainingArguments
from trainer_core.testing import PluginConformance, TinyModel, tiny_dataset
from trainer_core_early_stopping import StopAt, StopAtSettings, stop_at

SAMPLES, TOKENS = 2, 8
"""Of each update in these tests."""


class TestBudgets(PluginConformance):
    plugin_type = StopAt
    settings: ClassVar = {"max_samples": 30, "max_time": 3600.0}


class TestTime(PluginConformance):
    plugin_type = StopAt
    flat: ClassVar = {"max_time": "2h"}


class TestAllRules(PluginConformance):
    plugin_type = StopAt
    settings: ClassVar = {
        "metric": "accuracy",
        "at_least": 2.0,
        "max_time": 3600,
        "max_tokens": 10**6,
        "max_samples": 17,
    }
    flat: ClassVar = {"eval_strategy": "epoch", "include_num_input_tokens_seen": "all"}


class Clock:
    """A clock that a test sets, in place of the one that the plugin reads."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Taking:
    """Lets time go by in one hook."""

    def __init__(self, clock, hook, seconds):
        def take(trainer):
            clock.now += seconds

        setattr(self, hook, take)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stop_at, "monotonic", clock)
    return clock


# When it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "step", "why"),
    [
        ({"max_samples": 10}, 5, "10 samples, max_samples is 10"),
        ({"max_samples": 9}, 5, "10 samples, max_samples is 9"),
        ({"max_samples": 1}, 1, "2 samples, max_samples is 1"),
        ({"max_tokens": 32}, 4, "32 tokens, max_tokens is 32"),
        ({"max_tokens": 33}, 5, "40 tokens, max_tokens is 33"),
        ({"at_least": 0.5}, 6, "eval_score is 0.5, at least 0.5"),
        ({"at_most": 0.9, "metric": "score"}, 1, "eval_score is 0, at most 0.9"),
        ({"at_least": 0.15, "metric": "eval_score"}, 3, "eval_score is 0.2, at least 0.15"),
        ({"max_samples": 10, "max_tokens": 33, "at_least": 0.45}, 5, "40 tokens, max_tokens is 33"),
        ({"max_samples": 10, "at_least": 0.35}, 5, "10 samples, max_samples is 10"),
        ({"max_samples": 12, "max_tokens": 33, "at_least": 0.3}, 4, "eval_score is 0.3, at least 0.3"),
    ],
    ids=str,
)
def test_the_first_rule_that_is_met_ends_the_run_and_says_which_it_is(make, end, journal, rules, step, why):
    scores = [0.1 * k for k in range(12)]
    trainer = make(scores, stop_at=rules, include_num_input_tokens_seen="all")
    assert end(trainer) == (step, "stopped", "stop_at", why)
    assert journal(trainer) == [(step, "stop_at", why)]
    assert trainer.state.stopped_by == {"by": "stop_at", "why": why}


@pytest.mark.parametrize("rules", [{"max_samples": 24}, {"max_samples": 10**6}, {"at_least": 2.0}, {"max_time": "1d"}])
def test_a_rule_that_is_met_with_the_plan_or_not_at_all_changes_nothing(make, end, rules):
    assert end(make(stop_at=rules))[:2] == (12, "completed")


def test_samples_of_short_updates_are_counted_as_they_are(make, end):
    trainer = make(stop_at={"max_samples": 30}, per_device_train_batch_size=5, num_train_epochs=3)
    assert trainer.plan().steps_of("stop") == [7]
    assert end(trainer)[::3] == (7, "34 samples, max_samples is 30")


def test_padding_is_no_token_where_the_counting_leaves_it_out(make, end):
    rows = [row | {"attention_mask": (row["input_ids"] >= 0).long()} for row in tiny_dataset()]
    for row in rows:
        row["attention_mask"][2:] = 0
    options = {"include_num_input_tokens_seen": "non_padding", "remove_unused_columns": False}

    class Padded(TinyModel):
        def forward(self, input_ids, labels=None, attention_mask=None):
            return super().forward(input_ids, labels)

    trainer = make(given={"train_dataset": rows, "model": Padded()}, stop_at={"max_tokens": 16}, **options)
    assert end(trainer)[::3] == (4, "16 tokens, max_tokens is 16")


def test_a_value_that_is_no_number_meets_no_rule_and_is_said(make, end, caplog):
    trainer = make([math.nan, -math.inf, 0.3, 0.1], stop_at={"at_most": 0.2})
    assert end(trainer)[0] == 4
    told = [record.getMessage() for record in caplog.records if record.name == "trainer_core.stop_at"]
    assert told == ["step 1: eval_score is nan and meets no rule.", "step 2: eval_score is -inf and meets no rule."]


def test_an_evaluation_before_training_may_meet_it(make, end):
    options = {"eval_strategy": "no", "eval_on_start": True, "stop_at": {"metric": "score", "at_least": 0.4}}
    options |= {"metric_for_best_model": None, "greater_is_better": None}
    assert end(make([0.5], **options)) == (0, "stopped", "stop_at", "eval_score is 0.5, at least 0.4")


def test_evaluations_of_something_else_do_not_meet_it(make, end):
    class Curious:
        def on_step_end(self, trainer):
            trainer.evaluate(tiny_dataset(2, seed=5))

    assert end(make([0.5], Curious(), eval_steps=5, stop_at={"at_least": 0.5}))[0] == 5


def test_it_ends_after_the_evaluation_and_the_save_of_its_update(make, end, tmp_path):
    trainer = make(stop_at={"max_samples": 5}, eval_strategy="epoch", save_strategy="epoch")
    assert end(trainer)[0] == 3
    assert [row["step"] for row in trainer.state.log_history if "eval_score" in row] == [3]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


# The clock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_step_begin", 7),
        ("on_step_end", 7),  # after the plugin looked, before the evaluation of that update
        ("on_prediction_step", 4),  # two in each evaluation, which is finished first
        ("on_eval_end", 7),  # after the plugin looked, before the save of that update
        ("on_save", 8),  # after the plugin looked at that save
    ],
)
def test_time_is_counted_wherever_it_is_spent(make, end, clock, hook, step):
    options = {"save_strategy": "steps", "save_steps": 1, "per_device_eval_batch_size": 2, "max_time": "1m10s"}
    trainer = make([0.5], Taking(clock, hook, 10.0), **options)
    assert end(trainer) == (step, "stopped", "stop_at", "max_time, 1m10s, is spent")


def test_a_save_that_takes_all_the_time_is_the_last(make, end, clock):
    writing = Taking(clock, "on_save", 100)
    writing.before = ("stop_at",)
    options = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "epoch", "max_time": 50}
    assert end(make([0.5], writing, **options))[0] == 4


def test_the_clock_starts_with_train(make, end, clock):
    trainer = make(stop_at={"max_time": 5})
    clock.now += 100
    assert end(trainer)[:2] == (12, "completed")
    clock.now += 100
    assert end(trainer)[:2] == (12, "completed")


def test_preparing_counts(make, end, clock):
    trainer = make([0.5], Taking(clock, "on_train_begin", 10.0), stop_at={"max_time": 5})
    assert end(trainer)[0] == 1


def test_a_real_clock_ends_a_run(make, end):
    trainer = make(max_time="0.2s", max_steps=10**6, eval_strategy="epoch", save_strategy="no")
    step, outcome, by, why = end(trainer)
    assert (outcome, by, why) == ("stopped", "stop_at", "max_time, 0.2s, is spent")
    assert step < 10**6
    assert trainer.bus.members["stop_at"].plugin.state_dict()["seconds"] >= 0.2


@pytest.mark.parametrize(("rules", "alone"), [({"max_time": 1}, True), ({"max_samples": 1}, False)])
def test_only_a_clock_makes_ranks_agree_after_every_update(rules, alone):
    assert hasattr(StopAt(StopAtSettings(**rules)), "decides_alone") is alone


# What is refused --------------------------------------------------------------------------------------------------


EPOCH = {"eval_strategy": "epoch"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"stop_at": True},
            "stop_at: has no rule. Give it metric with at_least or at_most, max_time, max_tokens or max_samples, "
            "or leave it out.",
        ),
        (
            EPOCH | {"stop_at": {"metric": "accuracy"}},
            "stop_at.metric: has no bound, got 'accuracy'. Set stop_at.at_least or stop_at.at_most.",
        ),
        (
            EPOCH | {"stop_at": {"at_least": 0.5, "at_most": 0.6}},
            "stop_at.at_most: contradicts at_least=0.5, got 0.6. Keep one of the two.",
        ),
        (
            {"stop_at": {"at_most": 0.6}},
            "stop_at.metric: needs evaluations, and there are none, got eval_strategy='no'. Set eval_strategy.",
        ),
        (
            {"stop_at": {"max_tokens": 600}},
            "stop_at.max_tokens: needs tokens to be counted, and they are not, got 600. "
            'Set include_num_input_tokens_seen="all" or "non_padding".',
        ),
        (
            {"stop_at": {"max_samples": 0}},
            "stop_at.max_samples: must be at least 1, got 0 (from keyword). Use 1 or more.",
        ),
        (
            EPOCH | {"stop_at": {"metric": "", "at_least": 1}},
            "stop_at.metric: must not be empty, got '' (from keyword). Give some text.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(options, problem):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**options)
    assert caught.value.problems == [problem]


def test_the_settings_that_the_readme_shows_are_read_as_it_says(tmp_path):
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    settings = tmp_path / "train.yaml"
    settings.write_text(
        "eval_strategy: epoch\n" + readme.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8"
    )
    read = TrainingArguments.from_file(settings).stop_at
    assert read == StopAtSettings(metric="accuracy", at_least=0.95, max_time=129_600.0, max_samples=1_000_000)


def test_tokens_are_counted_for_their_rate_too():
    assert TrainingArguments(stop_at={"max_tokens": 6}, include_tokens_per_second=True).stop_at.max_tokens == 6


@pytest.mark.parametrize(
    "options", [{}, {"stop_at": None}, {"max_time": None}, {"stop_at": {"max_time": None}}], ids=str
)
def test_no_time_is_no_rule(options, make, end):
    trainer = make(**options)
    assert TrainingArguments(**trainer.args.to_dict()) == trainer.args == trainer.args.replace()
    assert trainer.args.max_time is None
    assert end(trainer)[:2] == (12, "completed")


def test_a_metric_that_no_evaluation_gives_is_refused_before_training(make):
    trainer = make(stop_at={"metric": "sorce", "at_least": 0.5})
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == [
        "stop_at.metric: no evaluation gives this metric, got 'eval_sorce'. Did you mean 'score'? "
        "Evaluations give loss, score; compute it in compute_metrics or name one of these."
    ]
    assert trainer.state.global_step == 0


def test_the_metric_of_an_evaluation_before_training_is_checked_too(make):
    options = {"eval_strategy": "no", "eval_on_start": True, "metric_for_best_model": "sorce"}
    with pytest.raises(SettingsError, match="metric_for_best_model: no evaluation gives this metric, got 'eval_sorce'"):
        make(stop_at={"at_least": 0.5}, **options).train()


# What the plan says -----------------------------------------------------------------------------------------------


UNKNOWN = "at moments not known before the run, by stop_at."


@pytest.mark.parametrize(
    ("rules", "row"),
    [
        ({"metric": "score", "at_least": 0.5}, f"{UNKNOWN}metric, when eval_score is at least 0.5"),
        ({"at_most": 0.25}, f"{UNKNOWN}metric, when eval_score is at most 0.25"),
        ({"max_time": "36h"}, f"{UNKNOWN}max_time, after 1d12h"),
        ({"max_tokens": 10**6}, f"{UNKNOWN}max_tokens, with 1,000,000 tokens"),
        ({"max_samples": 15}, "after step 8, by stop_at.max_samples, with 15 samples"),
        ({"max_samples": 1500}, "never, by stop_at.max_samples, with 1,500 samples"),
    ],
)
def test_the_plan_says_what_ends_the_run(make, rules, row):
    trainer = make(stop_at=rules, include_num_input_tokens_seen="all")
    assert dict(trainer.plan().rows())["stop"] == row


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 24])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_planned_update_is_the_one_at_which_the_samples_are_used_up(make, end, batch_size, accumulation, drop_last):
    options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    options |= {
        "dataloader_drop_last": drop_last,
        "num_train_epochs": 3,
        "save_strategy": "no",
        "eval_strategy": "epoch",
    }
    for samples in (1, 5, 20, 21, 24, 25, 49):
        trainer = make(stop_at={"max_samples": samples}, **options)
        assert [end(trainer)[0]] == trainer.last_plan.steps_of("stop"), samples


def test_the_plan_of_data_without_a_length_knows_no_update(make, end):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(tiny_dataset())

    trainer = make(given={"train_dataset": Stream()}, max_steps=12, stop_at={"max_samples": 9})
    assert dict(trainer.plan().rows())["stop"] == f"{UNKNOWN}max_samples, with 9 samples"
    assert end(trainer)[0] == 5


def test_it_works_beside_early_stopping(make, end):
    class Asking:
        def on_step_end(self, trainer):
            trainer.request(Signal.EVAL, by="asking", why="the test says so")

    both = {"early_stopping_patience": 3, "stop_at": {"max_samples": 6}}
    assert end(make([0.5], Asking(), **both))[::2] == (3, "stop_at")
    both["stop_at"] = {"max_samples": 9}
    assert end(make([0.5], Asking(), **both))[::2] == (4, "early_stopping")
