"""An error ends a run in order: the last step boundary is saved first, and the resumed run ends with the same bits."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trainer_core import DataError, Signal, journal_records

OPTIONS = {"save_steps": 5, "eval_strategy": "steps", "eval_steps": 4, "logging_steps": 3}
LAST = 18


class Trap:
    """Raises at the n-th call, and from then on: a fetch that may have drawn unseeded numbers is tried twice."""

    def __init__(self, number):
        self.number, self.calls = number, 0

    def step_on(self):
        self.calls += 1
        if self.number is not None and self.calls >= self.number:
            raise LookupError("the user's own")


def hook_that_raises(hook, step):
    def act(self, trainer):
        if trainer.state.global_step == step:
            raise LookupError("the user's own")

    return type("Raising", (), {"name": "raising", hook: act})()


def drawing(small, trap):
    """Gives a model that draws from all three generators, trained or evaluated, and has running statistics."""

    class Drawing(small.Net):
        def forward(self, x, labels=None):
            output = super().forward(x + 0.1 * random.random() + 0.1 * float(np.random.normal()), labels)
            if self.training:
                trap.step_on()
            return output

    torch.manual_seed(2)
    return Drawing()


def metric_of(trap):
    def metric(prediction):
        trap.step_on()
        return {"mean": float(np.mean(prediction.predictions)) + random.random()}

    return metric


class Falling(torch.utils.data.Dataset):
    def __init__(self, data, trap):
        self.data, self.trap = data, trap

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.trap.step_on()
        return self.data[index]


class Parts:
    """A run each of whose parts may fail."""

    def __init__(self, small, **numbers):
        self.small = small
        self.traps = {name: Trap(numbers.get(name)) for name in ("forward", "metric", "item", "collator")}

    def collate(self, samples):
        self.traps["collator"].step_on()
        return self.small.augmenting_collator(samples)

    def trainer(self, folder, *plugins, **options):
        trainer = self.small.trainer(
            folder,
            *plugins,
            model=drawing(self.small, self.traps["forward"]),
            dataset=Falling(self.small.Augmented(22), self.traps["item"]),
            collator=self.collate,
            eval_dataset=self.small.Augmented(10),
            **{**OPTIONS, **options},
        )
        trainer.compute_metrics = metric_of(self.traps["metric"])
        return trainer


@pytest.fixture
def whole(small, tmp_path):
    trainer = Parts(small).trainer(tmp_path / "whole")
    trainer.train()
    assert trainer.state.global_step == LAST
    return small.outcome(trainer)


def goes_on_the_same(small, folder, whole, assert_same):
    again = Parts(small).trainer(folder)
    again.train(resume_from_checkpoint=True)
    outcome = small.outcome(again)
    for one in (whole, outcome):  # where the best one was saved depends on where saves were
        one["counters"]["last_save_step"] = one["counters"]["best_model_checkpoint"] = None
    assert_same(whole, outcome, folder.name)


@pytest.mark.parametrize(
    ("part", "number"),
    [("forward", 8), ("forward", 13), ("item", 60), ("item", 49), ("metric", 3), ("metric", 4), ("collator", 19)],
)
def test_users_code_that_fails_loses_no_update(part, number, small, tmp_path, whole, assert_same):
    failing = Parts(small, **{part: number}).trainer(tmp_path / "run")
    with pytest.raises(LookupError, match="the user's own") as caught:
        failing.train()
    step = failing.state.global_step
    assert (step % 5 > 0, failing.outcome) == (True, "failed")
    saved = f"saved at step {step} first: resume_from_checkpoint=True goes on from {tmp_path / 'run'}/checkpoint-{step}"
    assert caught.value.__notes__[-1] == saved
    (record,) = journal_records(tmp_path / "run" / "journal.jsonl", "saved_on_error")
    assert (record["step"], record["checkpoint"], record["error"]) == (step, f"checkpoint-{step}", "LookupError")
    goes_on_the_same(small, tmp_path / "run", whole, assert_same)


HOOKS = {
    "on_step_begin": (7, 7),
    "on_substep_end": (7, 7),
    "on_pre_optimizer_step": (7, 7),
    "on_optimizer_step": (6, 7),
    "on_step_end": (8, 8),
    "on_log": (9, 9),
    "on_prediction_step": (8, 8),
    "on_evaluate": (8, 8),
    "on_new_best": (4, 4),
    "on_eval_end": (12, 12),
    "on_epoch_begin": (6, 6),
    "on_epoch_end": (12, 12),
}


@pytest.mark.parametrize("hook", sorted(HOOKS.keys() - {"on_substep_end"}))
def test_a_plugin_that_fails_loses_no_update_and_no_row(hook, small, tmp_path, whole, assert_same):
    step, saved = HOOKS[hook]
    failing = Parts(small).trainer(tmp_path / "run", hook_that_raises(hook, step))
    with pytest.raises(LookupError, match="the user's own") as caught:
        failing.train()
    assert caught.value.__notes__[0] == f"raised in plugin 'raising', hook {hook}"
    assert caught.value.__notes__[-1].endswith(f"checkpoint-{saved}")
    goes_on_the_same(small, tmp_path / "run", whole, assert_same)


@pytest.mark.parametrize("hook", ["on_log", "on_train_end"])
def test_a_plugin_that_fails_at_the_end_loses_no_update_and_no_row(hook, small, tmp_path, whole, assert_same):
    class Failing:
        name = "failing"

    def act(self, trainer):
        if "train_runtime" in trainer.state.log_history[-1]:
            raise LookupError("the user's own")

    setattr(Failing, hook, act)
    failing = Parts(small).trainer(tmp_path / "run", Failing(), save_strategy="no")
    with pytest.raises(LookupError) as caught:
        failing.train()
    assert caught.value.__notes__[-1].endswith(f"checkpoint-{LAST}")
    goes_on_the_same(small, tmp_path / "run", whole, assert_same)


def test_the_others_are_told_although_one_plugin_failed(small, tmp_path):
    class Counting:
        after = ("raising",)

        def __init__(self):
            self.steps = []

        def on_step_end(self, trainer):
            self.steps.append(trainer.state.global_step)

    counting = Counting()
    failing = small.trainer(tmp_path, hook_that_raises("on_step_end", 3), counting)
    with pytest.raises(LookupError):
        failing.train()
    assert counting.steps == [1, 2, 3]


def test_two_failures_at_one_boundary_are_one_error_with_a_note(small, tmp_path):
    class AlsoRaising:
        name = "also"

        def on_step_end(self, trainer):
            if trainer.state.global_step == 3:
                raise KeyError("the second")

    with pytest.raises((LookupError, KeyError)) as caught:
        small.trainer(tmp_path, hook_that_raises("on_step_end", 3), AlsoRaising()).train()
    assert any("and then" in note and "hook on_step_end" in note for note in caught.value.__notes__)


def test_nothing_new_is_not_saved_again(small, tmp_path):
    trainer = small.trainer(tmp_path, hook_that_raises("on_step_begin", 5), **OPTIONS)
    with pytest.raises(LookupError) as caught:
        trainer.train()
    where = "the newest checkpoint is of step 5: resume_from_checkpoint=True goes on from there"
    assert caught.value.__notes__[-1] == where
    assert not list(journal_records(tmp_path / "journal.jsonl", "saved_on_error"))


def test_an_optimizer_that_fails_half_way_is_not_saved(small, tmp_path):
    class Torn(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            if trainer.state.global_step == 6:
                raise ArithmeticError("half way")

    class Making:
        def create_optimizer(self, trainer):
            return Torn(trainer.model.parameters(), lr=0.1)

    trainer = small.trainer(tmp_path, Making(), **OPTIONS)
    with pytest.raises(ArithmeticError) as caught:
        trainer.train()
    assert caught.value.__notes__[-2:] == [
        "step 6 could not be saved: the error came out of the optimizer's step, weights may be half updated.",
        "the newest checkpoint is of step 5: resume_from_checkpoint=True goes on from there",
    ]


def test_a_rescue_that_fails_keeps_the_users_error(small, tmp_path, disk):
    faulty = disk(7, 2)
    trainer = small.trainer(tmp_path, hook_that_raises("on_step_begin", 7), **OPTIONS)
    with pytest.raises(LookupError) as caught:
        trainer.train()
    assert faulty.made
    assert caught.value.__notes__[-2].startswith("step 7 could not be saved: ")
    assert caught.value.__notes__[-1].startswith("the newest checkpoint is of step 5")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5"]


def test_a_plugin_that_fails_where_the_run_cannot_be_saved_keeps_its_error(small, tmp_path):
    trainer = small.trainer(tmp_path, hook_that_raises("on_step_end", 3), block_plugins=["console", "checkpointing"])
    with pytest.raises(LookupError) as caught:
        trainer.train()
    assert caught.value.__notes__ == [
        "raised in plugin 'raising', hook on_step_end",
        "raised in phase STEP, after step 3",
    ]


def test_a_batch_that_cannot_be_fetched_by_a_worker_loses_no_update(small, tmp_path):
    class Missing(torch.utils.data.Dataset):
        def __len__(self):
            return 22

        def __getitem__(self, index):
            if index == 13:
                raise DataError("sample 13 is gone")
            return {"x": torch.zeros(4), "labels": torch.tensor(0)}

    options = {"dataloader_num_workers": 1, "train_sampling_strategy": "sequential", "eval_dataset": None}
    with pytest.raises(DataError, match="sample 13 is gone"):
        small.trainer(tmp_path, dataset=Missing(), **options).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3"]


def test_a_due_evaluation_waits_in_the_checkpoint_and_is_made_first(small, tmp_path, evaluations):
    class Both:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 8:
                trainer.request(Signal.SAVE, by="both", why="the machine goes down")
                trainer.request(Signal.STOP, by="both", why="the machine goes down", interrupt=True)

    first = small.trainer(tmp_path, Both(), **OPTIONS)
    first.train()
    assert [step for step, _ in evaluations(tmp_path)] == [4]
    again = small.trainer(tmp_path, **OPTIONS)
    again.train(resume_from_checkpoint=True)
    assert evaluations(tmp_path)[:3] == [(step, "every 4 updates") for step in (4, 8, 12)]
    steps = [row["step"] for row in again.state.log_history if "eval_loss" in row]
    assert steps == [4, 8, 12, 16, 18]
