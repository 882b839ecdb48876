from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from trainer_core import DataError, NonFiniteLossError, Phase, Signal, Trainer, hookimpl
from trainer_core.phases import EXITS

ASKING = [
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
]
LATER = [
    "on_step_end",
    "on_log",
    "on_prediction_step",
    "on_evaluate",
    "on_eval_end",
    "on_save",
    "on_epoch_end",
    "on_phase",
]


class RowAtEachStep:
    """Logs after each update, as the logging plugin does."""

    @hookimpl(trylast=True)
    def on_step_end(self, trainer):
        trainer.log_training_row()


class Stream(IterableDataset):
    """Rows without a length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def stop(trainer):
    trainer.request(Signal.STOP, by="test", why="enough")


def evaluated(trainer):
    return [row["step"] for row in trainer.state.log_history if "eval_loss" in row]


def transitions(trainer):
    return [f"{entry.phase}@{entry.step}>{entry.next}" for entry in trainer.running.loop.journal.entries]


# The order of hooks -----------------------------------------------------------------------------------------------


TRACE_OF_AN_EPOCH = """
    epoch_begin
    step_begin substep_end substep_end pre_optimizer_step optimizer_step step_end log
    step_begin substep_end substep_end pre_optimizer_step optimizer_step step_end log
        prediction_step prediction_step log evaluate
    step_begin substep_end substep_end pre_optimizer_step optimizer_step step_end log
    step_begin pre_optimizer_step optimizer_step step_end log
        prediction_step prediction_step log evaluate
        save
    epoch_end
"""


def test_the_hooks_of_a_run_fire_in_the_order_of_the_original(make_trainer, make_data, recorder, writer):
    """Accumulation 3 over 10 batches, 2 epochs; a row each update, an evaluation every 2, a save every 4."""

    class SaveEvery4:
        def on_step_end(self, trainer):
            if trainer.state.global_step % 4 == 0:
                trainer.request(Signal.SAVE, by="test", why="every 4 updates")

    events = {*TRACE_OF_AN_EPOCH.split(), "train_begin", "train_end", "predict"}
    noting = recorder(*(f"on_{event}" for event in events))
    trainer = make_trainer(
        given={"plugins": [noting, RowAtEachStep(), SaveEvery4(), writer], "eval_dataset": make_data(6, seed=1)},
        num_train_epochs=2,
        gradient_accumulation_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=4,
    )
    trainer.train()
    assert [hook.removeprefix("on_") for hook in noting.heard] == [
        "train_begin",
        *TRACE_OF_AN_EPOCH.split(),
        *TRACE_OF_AN_EPOCH.split(),
        "log",
        "train_end",
    ]
    assert writer.steps == [4, 8]


def test_the_rows_of_that_run_carry_the_rate_that_was_used_and_the_epoch(make_trainer):
    trainer = make_trainer(given={"plugins": [RowAtEachStep()]}, max_steps=4, learning_rate=0.4)
    trainer.train()
    rows = trainer.state.log_history
    assert [sorted(row) for row in rows[:-1]] == [["epoch", "grad_norm", "learning_rate", "loss", "step"]] * 4
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (4, 0.4)]
    assert [row["learning_rate"] for row in rows[:-1]] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert rows[-1]["train_loss"] == pytest.approx(sum(row["loss"] for row in rows[:-1]) / 4)


def test_a_phase_is_told_when_it_is_entered_and_a_run_of_updates_once(make_trainer, recorder):
    noting = recorder("on_init_end", "on_plan", "on_train_begin", "on_train_end", "on_teardown")
    noting.on_phase = lambda trainer, phase: noting.heard.append(phase.name)
    make_trainer(given={"plugins": [noting]}).train()
    assert noting.heard == [
        "on_init_end",
        "INIT",
        "on_plan",
        "on_train_begin",
        *["EPOCH", "STEP", "EPOCH", "STOP"],
        "on_train_end",
        "on_teardown",
    ]


def test_the_journal_is_the_walk_over_the_table(make_trainer):
    trainer = make_trainer(num_train_epochs=2, eval_strategy="epoch", eval_on_start=True)
    trainer.train()
    assert transitions(trainer) == [
        "INIT@0>EVAL",
        "EVAL@0>EPOCH",
        "EPOCH@0>STEP",
        "STEP@10>EPOCH",
        "EPOCH@10>EVAL",
        "EVAL@10>EPOCH",
        "EPOCH@10>STEP",
        "STEP@20>EPOCH",
        "EPOCH@20>EVAL",
        "EVAL@20>EPOCH",
        "EPOCH@20>STOP",
        "STOP@20>",
    ]


# Evaluations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"eval_strategy": "epoch", "num_train_epochs": 3}, [10, 20, 30]),
        ({"eval_strategy": "epoch", "num_train_epochs": 1.5}, [10, 15]),
        ({"eval_strategy": "epoch", "max_steps": 12}, [10, 12]),
        ({"eval_strategy": "epoch", "num_train_epochs": 3, "eval_delay": 2}, [20, 30]),
        ({"eval_strategy": "epoch", "num_train_epochs": 3, "eval_delay": 1.5}, [20, 30]),
        ({"eval_strategy": "steps", "eval_steps": 4}, [4, 8, 10]),
        ({"eval_strategy": "steps", "eval_steps": 5}, [5, 10]),
        ({"eval_strategy": "steps", "eval_steps": 100}, [10]),
        ({"eval_strategy": "steps", "eval_steps": 0.3}, [3, 6, 9, 10]),
        ({"eval_strategy": "steps", "eval_steps": 0.25}, [3, 6, 9, 10]),
        ({"eval_strategy": "steps", "eval_steps": 0.1, "max_steps": 70}, list(range(7, 71, 7))),
        ({"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 5}, [6, 8, 10]),
        ({"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 11}, []),
        ({"eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True}, [0, 5, 10]),
        ({"eval_on_start": True}, [0]),
        ({}, []),
    ],
    ids=str,
)
def test_evaluations_fall_where_the_settings_put_them(make_trainer, options, steps):
    trainer = make_trainer(**options)
    trainer.train()
    assert evaluated(trainer) == steps


class Hearing:
    """Notes the step, the best metric and the names of what it is told at the end of phase EVAL."""

    def __init__(self):
        self.heard = []

    def on_eval_end(self, trainer, metrics):
        names = sorted(name for name in metrics if not name.endswith(("_runtime", "_per_second")))
        self.heard.append((trainer.state.global_step, trainer.state.best_metric == metrics["eval_a_loss"], names))

    def on_step_end(self, trainer):
        if trainer.state.global_step == 3:
            trainer.evaluate(metric_key_prefix="other")


def test_the_end_of_phase_eval_is_told_once_with_all_that_evaluate_gave(make_trainer, make_data):
    class Adding(Trainer):
        def evaluate(self, *args, **kwargs):
            return super().evaluate(*args, **kwargs) | {"eval_added": 1.0}

    hearing = Hearing()
    given_ = {"plugins": [hearing], "eval_dataset": {"a": make_data(4), "b": make_data(4, seed=1)}}
    options = {"metric_for_best_model": "a_loss", "greater_is_better": False}
    trainer = make_trainer(Adding, given=given_, eval_strategy="epoch", **options)
    trainer.evaluate()
    trainer.train()
    assert hearing.heard == [(10, True, ["epoch", "eval_a_loss", "eval_added", "eval_b_loss"])]


@pytest.mark.parametrize("signals", [[Signal.EVAL], [Signal.SAVE], [Signal.SAVE, Signal.EVAL]], ids=str)
def test_what_is_asked_for_at_the_end_of_the_last_epoch_is_served(make_trainer, acting, writer, signals):
    def ask(trainer):
        for wanted in signals:
            trainer.request(wanted, by="test", why="the end")

    trainer = make_trainer(given={"plugins": [acting("on_epoch_end", ask), writer]}, num_train_epochs=2)
    trainer.train()
    assert evaluated(trainer) == ([10, 20] if Signal.EVAL in signals else [])
    assert writer.steps == ([10, 20] if Signal.SAVE in signals else [])
    assert (trainer.state.global_step, trainer.outcome) == (20, "completed")


@pytest.mark.parametrize("again", ["on_step_end", "on_epoch_end", "on_evaluate", "on_save", "on_epoch_begin"])
def test_what_is_asked_for_twice_for_one_update_is_served_once(make_trainer, acting, writer, again):
    def ask(trainer):
        if trainer.state.global_step == 10:
            trainer.request(Signal.EVAL, by="test", why="again")
            trainer.request(Signal.SAVE, by="test", why="again")

    plugins = [acting("on_step_end", ask), acting(again, ask), writer]
    trainer = make_trainer(given={"plugins": plugins}, num_train_epochs=2, eval_strategy="epoch")
    trainer.train()
    assert (evaluated(trainer), writer.steps) == ([10, 20], [10])


def test_a_save_that_is_asked_for_before_training_is_served_before_the_first_update(make_trainer, acting, writer):
    def ask(trainer):
        trainer.request(Signal.SAVE, by="test", why="the start")

    make_trainer(given={"plugins": [acting("on_train_begin", ask), writer]}).train()
    assert writer.steps == [0]


def test_a_save_without_a_plugin_that_writes_is_said_and_goes_on(make_trainer, acting, caplog):
    def ask(trainer):
        trainer.request(Signal.SAVE, by="test", why="now")

    trainer = make_trainer(given={"plugins": [acting("on_step_end", ask, times=1)]})
    trainer.train()
    assert caplog.messages == ["step 1: a save was asked for, and no plugin writes checkpoints."]
    assert trainer.state.global_step == 10


MOMENTS = ["on_train_begin", "on_epoch_begin", "on_step_begin", "on_step_end", "on_log", "on_evaluate", "on_save"]
WISHES = st.lists(
    st.tuples(
        st.sampled_from([*MOMENTS, "on_epoch_end", "on_phase", "on_prediction_step"]),
        st.integers(0, 6),
        st.sampled_from([Signal.EVAL, Signal.SAVE, Signal.STOP, Signal.EPOCH_END]),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wishes=WISHES, strategy=st.sampled_from(["no", "steps", "epoch"]), epochs=st.sampled_from([0.5, 1, 2.5]))
def test_whatever_is_asked_for_the_run_walks_the_table_and_ends(
    make_trainer, make_data, recorder, writer, wishes, strategy, epochs
):
    class Wishing:
        def wish(self, hook, trainer):
            for moment, step, wanted in wishes:
                if (moment, step) == (hook, trainer.state.global_step) and trainer.is_in_train:
                    trainer.request(wanted, by="test", why="a wish")

    wishing = Wishing()
    for hook in {moment for moment, *_ in wishes}:
        setattr(wishing, hook, lambda trainer, hook=hook: wishing.wish(hook, trainer))
    noting = recorder("on_epoch_begin", "on_epoch_end", "on_train_end", "on_teardown")
    given_ = {
        "train_dataset": make_data(10),
        "eval_dataset": make_data(1),
        "plugins": [wishing, noting, RowAtEachStep(), writer],
    }
    writer.steps.clear()
    trainer = make_trainer(given=given_, num_train_epochs=epochs, eval_strategy=strategy, eval_steps=2)
    trainer.train()
    entries = trainer.running.loop.journal.entries
    walked = [(Phase[entry.phase], Phase[entry.next]) for entry in entries[:-1]]
    assert all(target in EXITS[phase].values() for phase, target in walked)
    assert [after.phase for after in entries[1:]] == [before.next for before in entries[:-1]]
    assert (entries[-1].phase, entries[-1].next) == ("STOP", "")
    assert len(set(evaluated(trainer))) == len(evaluated(trainer))
    assert len(set(writer.steps)) == len(writer.steps)
    assert noting.heard.count("on_epoch_begin") == noting.heard.count("on_epoch_end")
    assert noting.heard[-2:] == ["on_train_end", "on_teardown"]
    assert trainer.outcome == ("stopped" if trainer.stop_request.by == "test" else "completed")


# Stopping ---------------------------------------------------------------------------------------------------------


STEPS_WHEN_STOPPED_IN = {
    "on_plan": 0,
    "on_train_begin": 0,
    "on_phase": 0,
    "on_epoch_begin": 0,
    "on_epoch_end": 10,
    "on_log": 1,
    "on_prediction_step": 2,
    "on_evaluate": 2,
    "on_eval_end": 2,
    "on_save": 2,
    "on_train_end": 20,
}


@pytest.mark.parametrize("hook", ["on_plan", *ASKING, *LATER, "on_train_end"])
def test_a_stop_is_heeded_from_every_hook(make_trainer, acting, recorder, writer, hook):
    noting = recorder("on_epoch_begin", "on_epoch_end", "on_train_begin", "on_train_end", "on_teardown")
    saving = acting("on_evaluate", lambda trainer: trainer.request(Signal.SAVE, by="saving", why="evaluated"))
    trainer = make_trainer(
        given={"plugins": [acting(hook, stop), noting, RowAtEachStep(), saving, writer]},
        num_train_epochs=2,
        gradient_accumulation_steps=1 if hook != "on_substep_end" else 2,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    assert trainer.state.global_step == STEPS_WHEN_STOPPED_IN.get(hook, 1)
    assert noting.heard.count("on_epoch_begin") == noting.heard.count("on_epoch_end")
    assert noting.heard[0] == "on_train_begin"
    assert noting.heard[-2:] == ["on_train_end", "on_teardown"]
    if hook != "on_train_end":
        assert trainer.outcome == "stopped"
        assert (trainer.stop_request.by, trainer.stop_request.why) == ("test", "enough")


def test_a_stop_in_the_middle_of_an_epoch_closes_it_with_its_fraction(make_trainer, acting, writer):
    def ask(trainer):
        if trainer.state.global_step == 13:
            trainer.request(Signal.SAVE, by="test", why="keep it")
            stop(trainer)

    plugins = [acting("on_step_end", ask), writer]
    trainer = make_trainer(given={"plugins": plugins}, num_train_epochs=3, eval_strategy="epoch")
    output = trainer.train()
    assert (output.global_step, trainer.state.epoch, writer.steps) == (13, 1.3, [13])
    assert evaluated(trainer) == [10, 13]
    assert transitions(trainer)[-5:] == ["SAVE@13>EPOCH", "EPOCH@13>EVAL", "EVAL@13>EPOCH", "EPOCH@13>STOP", "STOP@13>"]


def test_the_first_stop_is_the_one_that_is_remembered(make_trainer, acting):
    def ask(trainer):
        trainer.request(Signal.STOP, by="first", why="a")
        trainer.request(Signal.STOP, by="second", why="b")

    trainer = make_trainer(given={"plugins": [acting("on_step_end", ask)]})
    trainer.train()
    assert trainer.stop_request.by == "first"
    assert trainer.state.stopped_by == {"by": "first", "why": "a"}


def test_an_epoch_that_is_cut_short_counts_and_the_run_ends_with_its_epochs(make_trainer, acting):
    def cut(trainer):
        if trainer.state.global_step % 2 == 0:
            trainer.request(Signal.EPOCH_END, by="test", why="short epochs")

    trainer = make_trainer(given={"plugins": [acting("on_step_end", cut)]}, num_train_epochs=3, eval_strategy="epoch")
    trainer.train()
    assert (trainer.state.global_step, trainer.state.epoch, trainer.outcome) == (6, 3.0, "completed")
    assert evaluated(trainer) == [2, 4, 6]


def test_epochs_that_are_all_cut_at_their_begin_end_the_run(make_trainer, acting):
    def cut(trainer):
        trainer.request(Signal.EPOCH_END, by="test", why="no epoch at all")

    trainer = make_trainer(given={"plugins": [acting("on_epoch_begin", cut, times=100)]}, num_train_epochs=3)
    trainer.train()
    assert (trainer.state.global_step, trainer.state.epoch) == (0, 3.0)


def test_a_request_outside_of_training_is_refused(make_trainer):
    with pytest.raises(RuntimeError, match="request: test asked for STOP while nothing trains"):
        stop(make_trainer())


# Data -------------------------------------------------------------------------------------------------------------


def test_data_without_a_length_is_read_until_the_last_update(make_trainer, make_rows, recorder):
    noting = recorder("on_epoch_begin", "on_epoch_end")
    given = {"train_dataset": Stream(make_rows(8)), "plugins": [noting]}
    trainer = make_trainer(given=given, max_steps=5, eval_strategy="epoch")
    trainer.train()
    assert (trainer.state.global_step, trainer.state.num_samples_seen) == (5, 20)
    assert noting.heard == ["on_epoch_begin", "on_epoch_end"] * 3
    assert [(row["step"], row["epoch"]) for row in trainer.state.log_history if "eval_loss" in row] == [
        (2, 1.0),
        (4, 2.0),
        (5, 2.0),
    ]
    assert trainer.explain(2).count("update") == 1


def test_a_short_last_batch_of_data_without_a_length_is_trained_on(make_trainer, make_rows):
    trainer = make_trainer(given={"train_dataset": Stream(make_rows(6))}, max_steps=2, gradient_accumulation_steps=3)
    trainer.train()
    assert (trainer.state.global_step, trainer.state.num_samples_seen) == (2, 12)


@pytest.mark.parametrize(("accumulation", "batch_size"), [(1, 1), (1, 4), (3, 4)])
def test_one_sample_is_enough(make_trainer, make_data, accumulation, batch_size):
    trainer = make_trainer(
        given={"train_dataset": make_data(1), "eval_dataset": make_data(1)},
        num_train_epochs=3,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        eval_strategy="epoch",
    )
    trainer.train()
    assert (trainer.state.global_step, trainer.state.num_samples_seen, evaluated(trainer)) == (3, 3, [1, 2, 3])


def test_accumulation_over_more_batches_than_an_epoch_has_makes_one_update_of_it(make_trainer, recorder):
    noting = recorder("on_substep_end", "on_step_end")
    trainer = make_trainer(given={"plugins": [noting]}, gradient_accumulation_steps=64, num_train_epochs=2)
    trainer.train()
    assert (trainer.state.global_step, trainer.state.num_samples_seen) == (2, 80)
    assert noting.heard == [*["on_substep_end"] * 9, "on_step_end"] * 2


def test_accumulation_gives_the_weights_of_the_whole_batch(make_trainer):
    def weights(**options):
        trainer = make_trainer(num_train_epochs=2, learning_rate=0.01, optim="sgd", **options)
        trainer.train()
        return torch.cat([parameter.flatten() for parameter in trainer.model.parameters()])

    whole = weights(per_device_train_batch_size=16)
    assert torch.allclose(weights(per_device_train_batch_size=2, gradient_accumulation_steps=8), whole, atol=1e-6)
    assert torch.allclose(weights(per_device_train_batch_size=8, gradient_accumulation_steps=2), whole, atol=1e-6)


# Interrupts -------------------------------------------------------------------------------------------------------


def interrupting(number, at_step=3):
    def interrupt(trainer):
        if trainer.state.global_step == at_step:
            os.kill(os.getpid(), number)

    return interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_of_the_system_saves_and_ends_the_run_and_the_handlers_are_put_back(
    make_trainer, acting, recorder, writer, number
):
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    noting = recorder("on_save", "on_epoch_end", "on_train_end", "on_teardown", "on_exception")
    trainer = make_trainer(given={"plugins": [acting("on_step_begin", interrupting(number)), writer, noting]})
    trainer.train()
    name = signal.Signals(number).name
    assert (trainer.outcome, trainer.stop_request.by, writer.steps) == ("interrupted", name, [4])
    assert noting.heard == ["on_save", "on_train_end", "on_teardown"]
    assert trainer.state.stopped_by is None
    assert {one: signal.getsignal(one) for one in before} == before
    assert trainer.explain(4) == (
        "Step 4: updates 1 to 4 were done in "
        f"{trainer.running.loop.journal.entries[2].seconds:.3g} s. "
        f"Saved, asked by {name}: the operating system or the user asks to end. "
        f"Left the epoch, asked by {name}: the operating system or the user asks to end. "
        f"Stopped, asked by {name}: the operating system or the user asks to end. "
        "The run ended."
    )


def test_a_trainer_that_was_interrupted_trains_again_from_the_start(make_trainer, acting):
    trainer = make_trainer(given={"plugins": [acting("on_step_begin", interrupting(signal.SIGINT), times=4)]})
    trainer.train()
    assert (trainer.state.global_step, trainer.outcome) == (4, "interrupted")
    trainer.train()
    assert (trainer.state.global_step, trainer.outcome, trainer.state.epoch) == (10, "completed", 1.0)


def test_a_second_interrupt_ends_the_run_at_once_and_tears_down(make_trainer, acting, recorder):
    def interrupt_twice(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGINT)
    noting = recorder("on_exception", "on_teardown", "on_train_end")
    trainer = make_trainer(given={"plugins": [acting("on_step_end", interrupt_twice), noting]})
    with pytest.raises(KeyboardInterrupt, match="SIGTERM: stopped at once"):
        trainer.train()
    assert noting.heard == ["on_exception", "on_teardown"]
    assert (trainer.outcome, signal.getsignal(signal.SIGINT)) == ("failed", before)


def test_a_run_in_another_thread_leaves_the_handlers_alone(make_trainer):
    trainer, before = make_trainer(), signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert (trainer.outcome, signal.getsignal(signal.SIGINT)) == ("completed", before)


# Failures ---------------------------------------------------------------------------------------------------------


class Broken(Exception):  # noqa: N818 # it is the user's
    """What the user's code raises in these tests."""


def breaks(*args, **kwargs):
    raise Broken("mine")


def breaking(method):
    return type("Breaking", (Trainer,), {method: breaks})


class BrokenRows(list):
    def __getitem__(self, index):
        if index == 7:
            raise Broken("mine")
        return super().__getitem__(index)


class BrokenSchedule:
    def step(self):
        breaks()

    def get_last_lr(self):
        return [0.1]


IN_STEP = "raised in phase STEP, after step 0"
IN_EVAL = "raised in phase EVAL, after step 10"
IN_INIT = "raised in phase INIT, after step 0"
FAILURES = {
    "compute_loss": (lambda make, rows: make(breaking("compute_loss")), [IN_STEP]),
    "training_step": (lambda make, rows: make(breaking("training_step")), [IN_STEP]),
    "log": (lambda make, rows: make(breaking("log"), eval_strategy="epoch"), [IN_EVAL]),
    "prediction_step": (lambda make, rows: make(breaking("prediction_step"), eval_strategy="epoch"), [IN_EVAL]),
    "evaluate": (lambda make, rows: make(breaking("evaluate"), eval_strategy="epoch"), [IN_EVAL]),
    "create_optimizer": (lambda make, rows: make(breaking("create_optimizer")), [IN_INIT]),
    "get_train_dataloader": (lambda make, rows: make(breaking("get_train_dataloader")), [IN_INIT]),
    "forward": (
        lambda make, rows: make(given={"model": type("Failing", (torch.nn.Linear,), {"forward": breaks})(4, 3)}),
        [IN_STEP],
    ),
    "compute_loss_func": (lambda make, rows: make(given={"compute_loss_func": breaks}), [IN_STEP]),
    "compute_metrics": (
        lambda make, rows: make(given={"compute_metrics": breaks}, eval_strategy="epoch"),
        ["raised in compute_metrics, in the evaluation at step 10", IN_EVAL],
    ),
    "preprocess_logits_for_metrics": (
        lambda make, rows: make(
            given={"preprocess_logits_for_metrics": breaks, "compute_metrics": dict}, eval_strategy="epoch"
        ),
        ["raised in preprocess_logits_for_metrics, in the evaluation at step 10", IN_EVAL],
    ),
    "data_collator": (
        lambda make, rows: make(
            given={"data_collator": breaks, "train_dataset": rows(8)}, train_sampling_strategy="sequential"
        ),
        [
            "raised in data_collator",
            "while fetching samples [0, 1, 2, 3] of training micro-batch 0, epoch 0",
            IN_STEP,
        ],
    ),
    "dataset": (
        lambda make, rows: make(given={"train_dataset": BrokenRows(rows(8))}, train_sampling_strategy="sequential"),
        [
            "while fetching samples [4, 5, 6, 7] of training micro-batch 1, epoch 0",
            "raised in phase STEP, after step 1",
        ],
    ),
    "optimizer": (
        lambda make, rows: make(given={"plugins": [type("Mine", (), {"create_optimizer": breaks})()]}),
        ["raised in plugin 'Mine', hook create_optimizer", IN_INIT],
    ),
    "scheduler": (
        lambda make, rows: make(given={"optimizers": (None, BrokenSchedule())}),
        [IN_STEP],
    ),
    "plugin": (
        lambda make, rows: make(given={"plugins": [type("Mine", (), {"on_epoch_end": breaks})()]}),
        ["raised in plugin 'Mine', hook on_epoch_end", "raised in phase EPOCH, after step 10"],
    ),
}


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("function", FAILURES)
def test_an_error_of_the_user_is_raised_as_it_is_with_a_note_and_all_is_put_back(
    make_trainer, make_rows, recorder, function
):
    make, notes = FAILURES[function]
    trainer = make(make_trainer, make_rows)
    noting = recorder("on_exception", "on_teardown")
    trainer.add_callback(noting)
    handlers, states = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)], random_states()
    attributes = set(vars(trainer.model))
    with pytest.raises(Broken, match="mine") as caught:
        trainer.train()
    assert caught.value.__notes__ == notes
    assert (noting.heard, trainer.outcome, trainer.is_in_train) == (["on_exception", "on_teardown"], "failed", False)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert random_states() == states
    assert set(vars(trainer.model)) == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.model.modules())
    assert {parameter.grad for parameter in trainer.model.parameters()} == {None}
    last = trainer.running.loop.journal.entries[-1]
    assert (last.by, last.why, last.next) == ("Broken", "mine", "")


def test_a_trainer_whose_run_failed_trains_again_as_if_nothing_had_been(make_trainer, acting):
    def weights(trainer):
        return [parameter.tolist() for parameter in trainer.model.parameters()]

    options = {"optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2, "max_grad_norm": 0}
    clean = make_trainer(**options)
    clean.train()
    failed = make_trainer(given={"plugins": [acting("on_substep_end", breaks, times=1)]}, **options)
    with pytest.raises(Broken):
        failed.train()
    failed.train()
    assert weights(failed) == weights(clean)


def test_every_plugin_is_torn_down_though_one_fails_at_it(make_trainer, recorder):
    class Untidy:
        def on_teardown(self):
            breaks()

    noting = recorder("on_teardown")
    trainer = make_trainer(given={"plugins": [Untidy(), noting]})
    with pytest.raises(Broken):
        trainer.train()
    assert (noting.heard, trainer.is_in_train, signal.getsignal(signal.SIGINT)) == (
        ["on_teardown"],
        False,
        signal.default_int_handler,
    )


def test_the_users_error_stays_the_error_though_plugins_fail_at_the_end(make_trainer, acting, recorder):
    class Untidy:
        def on_exception(self):
            raise OSError("exception")

        def on_teardown(self):
            raise OSError("teardown")

    noting = recorder("on_exception", "on_teardown")
    trainer = make_trainer(given={"plugins": [acting("on_step_end", breaks), Untidy(), noting]})
    with pytest.raises(Broken) as caught:
        trainer.train()
    assert caught.value.__notes__ == [
        "raised in plugin 'Acting', hook on_step_end",
        "raised in phase STEP, after step 1",
        "then OSError('exception') was raised in plugin 'Untidy', hook on_exception",
        "then OSError('teardown') was raised in plugin 'Untidy', hook on_teardown",
    ]
    assert noting.heard == ["on_exception", "on_teardown"]


def test_the_states_of_the_caller_are_put_back_after_a_run_that_ends_well(make_trainer):
    trainer, states = make_trainer(eval_strategy="epoch"), random_states()
    trainer.train()
    assert random_states() == states


# Losses that are no number ----------------------------------------------------------------------------------------


def poisoned(rows, at):
    rows[at]["x"] = rows[at]["x"] * float("nan")
    return rows


def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_are_touched(make_trainer, make_rows):
    trainer = make_trainer(
        given={"train_dataset": poisoned(make_rows(40), 9)},
        train_sampling_strategy="sequential",
        learning_rate=0.1,
    )
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    assert str(caught.value) == (
        "step 3: the loss is not finite, got nan. The weights are still those of step 2. "
        "Lower learning_rate, look at the batch of that step, or set nan_policy to 'skip' or 'ignore'."
    )
    assert trainer.state.global_step == 2
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize(("policy", "is_finite", "rows"), [("skip", True, 9), ("ignore", False, 10)])
def test_a_loss_that_is_no_number_is_passed_over_when_the_policy_says_so(
    make_trainer, make_rows, policy, is_finite, rows
):
    trainer = make_trainer(
        given={"train_dataset": poisoned(make_rows(40), 9), "plugins": [RowAtEachStep()]},
        train_sampling_strategy="sequential",
        nan_policy=policy,
    )
    trainer.train()
    assert trainer.state.global_step == 10
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters()) == is_finite
    assert sum("loss" in row for row in trainer.state.log_history) == rows


def test_data_that_gives_no_batch_is_refused(make_trainer):
    class Empty(Trainer):
        def get_train_dataloader(self):
            return Stream([])

    with pytest.raises(DataError, match=r"^train_dataset: gives no batch"):
        make_trainer(Empty, max_steps=3).train()
