from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from trainer_core import SettingsError, Trainer


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def served(trainer):
    """The updates after which the journal of the last run has an evaluation."""
    return [entry.step for entry in trainer.running.loop.journal.entries if entry.phase == "EVAL"]


# Arithmetic -------------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_a_run_is_written_out(make_trainer):
    plan = make_trainer(gradient_accumulation_steps=3, num_train_epochs=2).plan()
    assert plan.arithmetic == "4 a micro-batch × 3 accumulated × 1 rank = 12 samples an update"
    assert (plan.num_samples, plan.micro_batches_per_epoch, plan.updates_per_epoch) == (40, 10, 4)
    assert (plan.max_steps, plan.num_train_epochs, plan.last_update_samples) == (8, 2, 4)
    assert (plan.num_parameters, plan.num_trainable) == (67, 67)


@pytest.mark.parametrize(
    ("options", "max_steps", "epochs"),
    [
        ({"num_train_epochs": 3}, 30, 3),
        ({"num_train_epochs": 0.25}, 3, 0.25),
        ({"num_train_epochs": 1.1}, 11, 1.1),
        ({"num_train_epochs": 0.7, "per_device_train_batch_size": 1}, 28, 0.7),
        ({"num_train_epochs": 0.075, "per_device_train_batch_size": 1}, 3, 0.075),
        ({"max_steps": 25}, 25, 2.5),
        ({"max_steps": 25, "num_train_epochs": 1}, 25, 2.5),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 12}, 3, 1),
        ({"per_device_train_batch_size": 64}, 1, 1),
    ],
    ids=str,
)
def test_updates_follow_from_epochs_or_are_given(make_trainer, options, max_steps, epochs):
    plan = make_trainer(**options).plan()
    assert (plan.max_steps, plan.num_train_epochs) == (max_steps, epochs)


@pytest.mark.parametrize(
    ("options", "samples", "last"),
    [
        ({"per_device_train_batch_size": 16}, 40, 8),
        ({"per_device_train_batch_size": 16, "dataloader_drop_last": True}, 32, 16),
        ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}, 40, 8),
        ({"per_device_train_batch_size": 10}, 40, 10),
        ({"per_device_train_batch_size": 64}, 40, 40),
    ],
    ids=str,
)
def test_the_last_update_of_an_epoch_has_what_is_left(make_trainer, options, samples, last):
    trainer = make_trainer(**options)
    plan = trainer.plan()
    assert (plan.num_samples, plan.last_update_samples) == (samples, last)
    trainer.train()
    assert trainer.state.num_samples_seen == samples


def test_a_model_with_frozen_parameters_tells_both_counts(make_trainer):
    trainer = make_trainer()
    trainer.model.hidden.requires_grad_(False)
    plan = trainer.plan()
    assert (plan.num_parameters, plan.num_trainable) == (67, 27)
    assert plan.rows()[0] == ("model", "67 parameters, 27 trained")


# When things happen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"eval_strategy": "steps", "eval_steps": 4}, [4, 8, 10]),
        ({"eval_strategy": "epoch", "num_train_epochs": 2.5}, [10, 20, 25]),
        ({"eval_strategy": "epoch", "num_train_epochs": 3, "eval_delay": 2}, [20, 30]),
        ({"eval_strategy": "steps", "eval_steps": 0.5, "eval_on_start": True}, [0, 5, 10]),
        ({}, []),
    ],
    ids=str,
)
def test_the_evaluations_are_listed_with_their_updates(make_trainer, options, steps):
    assert make_trainer(**options).plan().steps_of("evaluation") == steps


RUNS = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 9),
        "per_device_train_batch_size": st.integers(1, 3),
        "gradient_accumulation_steps": st.integers(1, 3),
        "max_steps": st.just(-1) | st.integers(1, 9),
        "num_train_epochs": st.sampled_from([0.3, 1.0, 1.1, 1.5, 2.0, 2.7]),
        "dataloader_drop_last": st.just(False),
        "eval_strategy": st.sampled_from(["steps", "epoch", "no"]),
        "eval_steps": st.sampled_from([1, 2, 3, 7, 0.1, 0.3, 0.5]),
        "eval_delay": st.sampled_from([0, 1, 1.4, 1.55, 2, 3, 5]),
        "eval_on_start": st.booleans(),
    }
)

PLAIN = {"per_device_train_batch_size": 1, "eval_strategy": "epoch", "eval_steps": 1}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=RUNS)
@example(options={**PLAIN, "rows": 10, "gradient_accumulation_steps": 3, "max_steps": 6, "eval_delay": 1.55})
@example(options={**PLAIN, "rows": 100, "num_train_epochs": 0.07})
def test_the_plan_is_what_the_run_then_does(make_trainer, make_data, options):
    options = dict(options)
    trainer = make_trainer(
        given={"train_dataset": make_data(options.pop("rows")), "eval_dataset": make_data(1)}, **options
    )
    plan = trainer.plan()
    trainer.train()
    assert plan.steps_of("evaluation") == served(trainer)
    assert plan.max_steps == trainer.state.global_step
    assert plan.to_dict() == trainer.last_plan.to_dict()


def test_the_learning_rates_of_the_plan_are_those_of_the_run(make_trainer, acting):
    used = {}

    def note(trainer):
        used[trainer.state.global_step] = trainer.optimizer.param_groups[0]["lr"]

    trainer = make_trainer(
        given={"plugins": [acting("on_step_begin", note)]},
        num_train_epochs=2,
        learning_rate=0.01,
        warmup_steps=4,
        lr_scheduler_type="cosine",
    )
    plan = trainer.plan()
    trainer.train()
    assert [when for when, _, _ in plan.learning_rates] == ["at the start", "after warm-up", "half-way", "at the end"]
    assert [step for _, step, _ in plan.learning_rates] == [0, 4, 10, 19]
    assert [rate for *_, rate in plan.learning_rates] == pytest.approx([used[step] for step in (0, 4, 10, 19)])


@pytest.mark.parametrize("is_set_later", [False, True])
def test_a_rate_that_is_the_users_is_said_to_be_unknown(make_trainer, make_model, is_set_later):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer(given={"model": model, "optimizers": (None if is_set_later else optimizer, None)})
    trainer.optimizer = optimizer
    plan = trainer.plan()
    assert plan.learning_rates == []
    assert plan.unknown == [
        "the learning rate: it is that of the optimizer and scheduler that were passed or overridden"
    ]


def test_a_plugin_adds_what_it_will_do(make_trainer):
    class Adding:
        def on_plan(self, plan):
            plan.schedule("save", "mine", [5, 10], note="small")
            plan.disk("mine", 1500)
            plan.disk("mine", 500)

    plan = make_trainer(given={"plugins": [Adding()]}).plan()
    assert plan.steps_of("save") == [5, 10]
    assert plan.rows()[-2:] == [("save", "after step 5, 10, by mine, small"), ("disk", "mine 2.0 kB at most")]


# What is not known, and what is refused ---------------------------------------------------------------------------


def test_data_without_a_length_says_what_is_unknown(make_trainer, make_rows):
    given = {"train_dataset": Stream(make_rows(8))}
    plan = make_trainer(given=given, max_steps=5, eval_strategy="epoch").plan()
    assert (plan.num_samples, plan.updates_per_epoch, plan.num_train_epochs, plan.max_steps) == (None, None, None, 5)
    assert plan.unknown == ["the length of an epoch: the training data does not tell it; max_steps ends the run"]
    assert ("data", "length unknown; read until it ends or the run does") in plan.rows()
    assert ("evaluation", "at moments not known before the run, by eval_strategy") in plan.rows()
    assert json.loads(plan.to_json())["scheduled"] == [
        {"what": "evaluation", "by": "eval_strategy", "note": "", "steps": None}
    ]


def test_a_metric_that_no_evaluation_gives_is_a_contradiction_and_stops_the_run_before_it_begins(
    make_trainer, recorder
):
    noting = recorder("on_train_begin", "on_prediction_step", "on_log", "on_evaluate")
    trainer = make_trainer(
        given={"compute_metrics": lambda prediction: {"accuracy": 1.0, "f1": 0.5}, "plugins": [noting]},
        eval_strategy="epoch",
        metric_for_best_model="acuracy",
        greater_is_better=True,
    )
    problem = (
        "metric_for_best_model: no evaluation gives this metric, got 'acuracy'. Did you mean 'accuracy'? "
        "Evaluations give accuracy, f1, loss; compute it in compute_metrics or name one of these."
    )
    assert trainer.plan().contradictions == [problem]
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == [problem]
    assert (noting.heard, trainer.state.log_history) == ([], [])


def test_contradictions_of_plugins_stop_the_run_all_at_once(make_trainer):
    class Contradicting:
        def on_plan(self, plan):
            plan.contradict("mine: is wrong. Mend it.")
            plan.contradict("mine: is wrong twice. Mend it.")

    trainer = make_trainer(given={"plugins": [Contradicting()]})
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == ["mine: is wrong. Mend it.", "mine: is wrong twice. Mend it."]


def test_an_evaluation_dataset_without_rows_is_a_contradiction(make_trainer, make_data):
    given = {"eval_dataset": {"some": make_data(3), "none": make_data(0)}}
    plan = make_trainer(given=given, eval_strategy="epoch").plan()
    assert plan.contradictions == ["eval_dataset: 'none' has no rows, got length 0. Pass one with at least one row."]


# As an object -----------------------------------------------------------------------------------------------------


def test_the_plan_as_json_is_the_plan(make_trainer):
    plan = make_trainer(eval_strategy="steps", eval_steps=5, num_train_epochs=2, learning_rate=0.01).plan()
    assert json.loads(plan.to_json()) == {
        "num_parameters": 67,
        "num_trainable": 67,
        "num_samples": 40,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "world_size": 1,
        "micro_batches_per_epoch": 10,
        "updates_per_epoch": 10,
        "num_train_epochs": 2.0,
        "max_steps": 20,
        "last_update_samples": 4,
        "disk_bytes": {},
        "contradictions": [],
        "unknown": [],
        "unread": [],
        "global_batch_size": 4,
        "arithmetic": "4 a micro-batch × 1 accumulated × 1 rank = 4 samples an update",
        "learning_rates": [
            {"when": "at the start", "step": 0, "learning_rate": 0.01},
            {"when": "half-way", "step": 10, "learning_rate": 0.005},
            {"when": "at the end", "step": 19, "learning_rate": pytest.approx(0.0005)},
        ],
        "scheduled": [{"what": "evaluation", "by": "eval_strategy", "note": "", "steps": [5, 10, 15, 20]}],
    }


def test_a_long_list_of_updates_is_abridged_in_json_and_in_words(make_trainer):
    plan = make_trainer(eval_strategy="steps", eval_steps=1, max_steps=2000).plan()
    assert json.loads(plan.to_json())["scheduled"][0]["steps"] == [1, 2, 3, 2000]
    assert json.loads(plan.to_json())["scheduled"][0]["abridged_count"] == 2000
    assert ("evaluation", "2000 times, after step 1, 2, 3, … 2000, by eval_strategy") in plan.rows()


def test_the_rows_of_a_plan_read_as_sentences(make_trainer):
    plan = make_trainer(gradient_accumulation_steps=3, num_train_epochs=1.5, learning_rate=0.01).plan()
    assert plan.rows() == [
        ("model", "67 parameters, 67 trained"),
        ("batch", "4 a micro-batch × 3 accumulated × 1 rank = 12 samples an update"),
        ("data", "40 samples, 10 micro-batches an epoch on each rank; the last update of an epoch has 4 samples"),
        ("updates", "6 (4 an epoch × 1.5 epochs)"),
        ("learning rate", "0.01 at the start (step 0), 0.005 half-way (step 3), 0.00167 at the end (step 5)"),
    ]


def test_planning_trains_nothing_and_tells_nobody_but_planners(make_trainer, recorder, told_hooks):
    noting = recorder(*told_hooks)
    trainer = make_trainer(
        given={"plugins": [noting]}, eval_strategy="epoch", metric_for_best_model="loss", eval_on_start=True
    )
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    states = torch.get_rng_state()
    trainer.plan()
    assert noting.heard == ["on_init_end", "on_plan"]
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert torch.equal(states, torch.get_rng_state())
    assert (trainer.state.log_history, trainer.optimizer) == ([], None)


def test_a_share_of_an_epoch_that_binary_cannot_hold_adds_no_update(make_trainer, make_data):
    """100 * 0.07 is 7.000000000000001 in binary."""
    trainer = make_trainer(
        given={"train_dataset": make_data(100)}, num_train_epochs=0.07, per_device_train_batch_size=1
    )
    assert trainer.plan().max_steps == 7


def test_the_plan_of_a_users_own_loader_counts_its_batches(make_trainer, make_data):
    class Own(Trainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(make_data(10), batch_size=5, shuffle=True)

    trainer = make_trainer(Own, num_train_epochs=3)
    plan = trainer.plan()
    assert (plan.micro_batches_per_epoch, plan.max_steps, plan.num_samples) == (2, 6, None)
    trainer.train()
    assert (trainer.state.global_step, trainer.state.num_samples_seen) == (6, 30)
