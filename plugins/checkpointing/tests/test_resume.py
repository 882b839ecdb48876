"""A resumed run equals the one that nobody cut, to the bit, wherever it is cut."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from torch.utils.data import TensorDataset

from trainer_core import SettingsError, Trainer, TrainingArguments

LAST = 18


@pytest.fixture(autouse=True)
def _no_flushes(monkeypatch):
    """What a flush is for is tested with `writing`; on a busy disk they would take most of the time here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


CASES = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 4},
    "epochs": {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch"},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True, "save_total_limit": 2},
    "fractional": {"num_train_epochs": 2.4, "eval_strategy": "epoch", "eval_on_start": True},
    "plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0},
        "eval_strategy": "steps",
        "eval_steps": 1,
        "num_train_epochs": 2,
    },
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "max_grad_norm": 0.5, "num_train_epochs": 2},
    "rmsprop": {"optim": "rmsprop", "weight_decay": 0.1, "num_train_epochs": 2},
    "adafactor": {"optim": "adafactor", "num_train_epochs": 2},
    "dropped": {"dataloader_drop_last": True, "train_sampling_strategy": "sequential", "save_steps": 0.25},
    "max_steps": {"max_steps": 9, "bf16": True, "label_smoothing_factor": 0.1},
}


def options_of(case):
    return {"save_steps": 3, "logging_first_step": True} | CASES[case]


def cuts(small, tmp_path, **made):
    """Gives the outcome of an uninterrupted run, and that of each run cut after update k and resumed."""
    whole = small.trainer(tmp_path / "whole", **made)
    whole.train()
    yield whole, None
    for step in range(1, whole.state.max_steps + 1):
        folder = tmp_path / f"cut-{step}"
        first = small.trainer(folder, small.Cut(step), **made)
        first.train()
        assert first.outcome == "interrupted"
        again = small.trainer(folder, **made)
        again.train(resume_from_checkpoint=True)
        yield again, folder


def check(small, tmp_path, assert_same, evaluations, **made):
    runs = cuts(small, tmp_path, **made)
    whole, _ = next(runs)
    expected = small.outcome(whole)
    expected["counters"]["last_save_step"] = None
    for again, folder in runs:
        actual = small.outcome(again)
        actual["counters"]["last_save_step"] = None  # the cut is a save more
        assert_same(expected, actual, folder.name)
        assert evaluations(folder) == evaluations(tmp_path / "whole")


@pytest.mark.parametrize("case", CASES)
def test_a_cut_after_any_update_changes_nothing(case, small, tmp_path, assert_same, evaluations):
    check(small, tmp_path, assert_same, evaluations, **options_of(case))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("linear", {}),
        ("cosine", {}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("polynomial", {"power": 2.0}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 3}),
    ],
)
def test_every_schedule_goes_on_where_it_was(name, kwargs, small, tmp_path, assert_same):
    made = {"lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs, "num_train_epochs": 1, "save_steps": 100}
    made |= {"logging_steps": 1} | ({} if name == "constant" else {"warmup_steps": 2})
    runs = cuts(small, tmp_path, **made)
    expected = small.outcome(next(runs)[0])
    for again, folder in runs:
        actual = small.outcome(again)
        assert_same(expected["schedule"], actual["schedule"], folder.name)
        assert_same(expected["history"], actual["history"], folder.name)
        assert_same(expected["model"], actual["model"], folder.name)


@pytest.mark.parametrize("collates", [False, True])
def test_random_augmentation_is_the_same_after_a_cut(collates, small, tmp_path, assert_same, evaluations):
    collator = small.augmenting_collator if collates else None
    made = {"dataset": small.Augmented(22), "eval_dataset": small.Augmented(10), "collator": collator}
    made["num_train_epochs"] = 2
    check(small, tmp_path, assert_same, evaluations, gradient_accumulation_steps=2, eval_strategy="epoch", **made)


@pytest.mark.slow
def test_random_augmentation_is_the_same_after_a_cut_with_two_workers(small, tmp_path, assert_same):
    made = {"dataset": small.Augmented(22), "collator": small.augmenting_collator, "num_train_epochs": 2}
    made |= {"eval_strategy": "epoch", "save_steps": 100, "eval_dataset": small.Augmented(10)}
    alone = small.trainer(tmp_path / "alone", **made)
    alone.train()
    made["dataloader_num_workers"] = 2
    whole = small.trainer(tmp_path / "whole", **made)
    whole.train()
    assert_same(alone.model.state_dict(), whole.model.state_dict())
    for step in (1, 4, 6, 9, 12):
        folder = tmp_path / f"cut-{step}"
        small.trainer(folder, small.Cut(step), **made).train()
        again = small.trainer(folder, **made)
        again.train(resume_from_checkpoint=True)
        assert_same(small.outcome(whole)["model"], small.outcome(again)["model"], folder.name)
        assert_same(small.outcome(whole)["history"], small.outcome(again)["history"], folder.name)


@pytest.mark.parametrize("case", ["plain", "evaluated", "epochs"])
def test_a_run_that_died_goes_on_from_its_newest_checkpoint(case, small, tmp_path, assert_same):
    made = options_of(case)
    whole = small.trainer(tmp_path / "whole", **made)
    whole.train()
    for step in (7, 8, 12, 13, LAST):
        folder = tmp_path / f"died-{step}"
        with pytest.raises(RuntimeError, match="the power went out"):
            small.trainer(folder, small.Cut(step, raises=True), **made).train()
        again = small.trainer(folder, **made)
        again.train(resume_from_checkpoint=True)
        assert again.resumed_from is not None
        assert_same(small.outcome(whole), small.outcome(again), folder.name)


def test_a_run_that_is_cut_after_every_update_changes_nothing(small, tmp_path, assert_same):
    made = options_of("evaluated")
    whole = small.trainer(tmp_path / "whole", **made)
    whole.train()
    for step in range(1, LAST + 1):
        last = small.trainer(tmp_path / "cut", small.Cut(step), **made)
        last.train(resume_from_checkpoint=step > 1)
    again = small.trainer(tmp_path / "cut", **made)
    again.train(resume_from_checkpoint=True)
    expected, actual = small.outcome(whole), small.outcome(again)
    expected["counters"]["last_save_step"] = actual["counters"]["last_save_step"] = None
    assert_same(expected, actual)


def test_no_item_before_the_cut_is_loaded(small, tmp_path):
    made = {"num_train_epochs": 1, "train_sampling_strategy": "sequential"}
    small.trainer(tmp_path, small.Cut(4), dataset=small.Augmented(22), **made).train()
    dataset = small.Augmented(22)
    small.trainer(tmp_path, dataset=dataset, **made).train(resume_from_checkpoint=True)
    assert sorted(set(dataset.loaded)) == list(range(16, 22))


def test_hooks_that_draw_before_the_cut_is_reached_change_nothing(small, tmp_path, assert_same):
    class Drawing:
        def on_train_begin(self, trainer):
            torch.rand(5)

        def on_epoch_begin(self, trainer):
            torch.rand(3)

    for made in ({"save_steps": 3}, {"save_strategy": "epoch"}):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        whole = small.trainer(tmp_path / "run", Drawing(), **made)
        whole.train()
        for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
            again = small.trainer(tmp_path / "other", Drawing(), **made)
            again.train(resume_from_checkpoint=checkpoint)
            assert_same(small.outcome(whole)["model"], small.outcome(again)["model"], checkpoint.name)


def test_saving_draws_no_random_number_of_the_run(small, tmp_path, assert_same):
    often = small.trainer(tmp_path / "often", save_steps=1)
    often.train()
    never = small.trainer(tmp_path / "never", save_strategy="no")
    never.train()
    assert_same(often.model.state_dict(), never.model.state_dict())
    assert not list((tmp_path / "never").glob("checkpoint-*"))


def test_state_of_a_plugin_that_is_gone_is_kept_for_its_return(small, tmp_path):
    class Absent(small.Patience):
        name = "absent"

    made = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    first = small.trainer(tmp_path, Absent(), small.Cut(8), **made)
    first.train()
    seen = first.bus.members["absent"].plugin.seen
    small.trainer(tmp_path, small.Cut(12), **made).train(resume_from_checkpoint=True)
    back = Absent()
    small.trainer(tmp_path, back, **made).train(resume_from_checkpoint=True)
    assert len(seen) == 1
    assert back.seen[:1] == seen
    assert len(back.seen) == 3


def test_the_setting_resumes_when_train_is_called_without_an_argument(small, tmp_path):
    small.trainer(tmp_path, small.Cut(4)).train()
    again = small.trainer(tmp_path, resume_from_checkpoint=True)
    again.train()
    assert again.resumed_from == tmp_path / "checkpoint-4"


def test_the_next_save_after_a_resume_leaves_older_histories_alone(small, tmp_path):
    small.trainer(tmp_path, small.Cut(4), logging_steps=1).train()
    before = (tmp_path / "checkpoint-4" / "log_history.jsonl").read_bytes()
    again = small.trainer(tmp_path, logging_steps=1)
    again.train(resume_from_checkpoint=True)
    assert (tmp_path / "checkpoint-4" / "log_history.jsonl").read_bytes() == before
    rows = (tmp_path / "checkpoint-18" / "log_history.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 19))


class Strided(torch.nn.Module):
    """Parameters that do not lie in memory in the order of their dimensions."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.weight = torch.nn.Parameter(torch.randn(288, 3).t().contiguous().t())

    def forward(self, x, labels):
        logits = self.convolution(x).flatten(1) @ self.weight
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_parameters_of_any_memory_layout_go_on_to_the_bit(optim, tmp_path):
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(32, 3, 8, 8, generator=generator), torch.arange(32) % 3)

    def trainer(name):
        args = TrainingArguments(
            tmp_path / name, num_train_epochs=2, save_steps=3, learning_rate=1e-2, optim=optim, console=None
        )
        return Trainer(model_init=Strided, args=args, train_dataset=data)

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-3")
    own, other = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_the_state_of_another_optimizer_is_refused(small, tmp_path):
    args = TrainingArguments(tmp_path / "a", num_train_epochs=1, console=None)
    data = TensorDataset(torch.zeros(8, 3, 8, 8), torch.arange(8) % 3)
    Trainer(model=Strided(), args=args, train_dataset=data).train()
    other = Trainer(model=Strided(), args=args.replace(optim="sgd"), train_dataset=data)
    with pytest.raises(SettingsError) as caught:
        other.train(resume_from_checkpoint=True)
    assert caught.value.problems == [
        "optim: the state in the checkpoint is of another kind; the run of the checkpoint had 'adamw_torch_fused', "
        "got 'sgd' (from keyword). Go back to 'adamw_torch_fused', or start anew from its weights."
    ]


def test_a_learning_rate_that_the_checkpoint_overrides_is_said(tmp_path, caplog):
    args = TrainingArguments(tmp_path / "a", num_train_epochs=2, save_steps=1, learning_rate=1e-3, console=None)
    data = TensorDataset(torch.zeros(8, 3, 8, 8), torch.arange(8) % 3)
    Trainer(model=Strided(), args=args, train_dataset=data).train()
    other = Trainer(model=Strided(), args=args.replace(learning_rate=1.0), train_dataset=data)
    other.train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-1")
    assert (
        "settings changed since the checkpoint of step 1:\n  learning_rate: 1 (from keyword), was 0.001; "
        "the run goes on with that of its checkpoint, start anew to change it."
    ) in caplog.messages
