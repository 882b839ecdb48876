"""Runs that are resumed with other settings than their checkpoint's."""

from __future__ import annotations

import json

import pytest
import torch

from trainer_core import SettingsError, Signal, journal_records


def said_in(caplog):
    return [line for record in caplog.records if record.name == "trainer_core.snapshot" for line in
            record.getMessage().splitlines()]  # fmt: skip


def records_of(folder):
    return list(journal_records(folder / "journal.jsonl", "settings_changed"))


def test_all_refused_changes_come_in_one_error_and_no_update_is_done(small, tmp_path):
    small.trainer(tmp_path, small.Cut(4)).train()
    changes = {"seed": 7, "bf16": True, "train_sampling_strategy": "sequential", "save_total_limit": 3}
    again = small.trainer(tmp_path, **changes)
    with pytest.raises(SettingsError) as caught:
        again.train(resume_from_checkpoint=True)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["seed", "train_sampling_strategy", "bf16"]
    assert caught.value.problems[0] == (
        "seed: the rest of the run would draw other random numbers; the run of the checkpoint had 42, "
        "got 7 (from keyword). Go back to 42, or start anew from its weights."
    )
    assert again.state.global_step == 0
    (record,) = records_of(tmp_path)
    assert [change["name"] for change in record["refused"]] == ["seed", "train_sampling_strategy", "bf16"]
    assert record["said"] == [{"name": "save_total_limit", "before": None, "now": 3, "source": "keyword"}]
    assert record["step"] == 4


def test_all_said_changes_come_in_one_block_and_hold_from_here_on(small, tmp_path, caplog):
    small.trainer(tmp_path, small.Cut(4), eval_strategy="steps", eval_steps=2).train()
    caplog.clear()
    again = small.trainer(tmp_path, eval_strategy="steps", eval_steps=5, max_grad_norm=0.5, logging_steps=3)
    again.train(resume_from_checkpoint=True)
    assert said_in(caplog) == [
        "settings changed since the checkpoint of step 4:",
        "  max_grad_norm: 0.5 (from keyword), was 1.",
        "  eval_steps: 5 (from keyword), was 2.",
    ]
    (record,) = records_of(tmp_path)
    assert (record["refused"], record["step"], record["rank"]) == ([], 4, 0)
    assert [change["name"] for change in record["said"]] == ["max_grad_norm", "eval_steps"]
    rows = [row["step"] for row in again.state.log_history if "eval_loss" in row]
    assert rows == [2, 4, 5, 10, 15, 18]


def test_nothing_is_said_of_the_same_settings_spelled_otherwise(small, tmp_path, caplog):
    small.trainer(tmp_path, small.Cut(4), save_steps=0.5, evaluation_strategy="epoch").train()
    caplog.clear()
    again = small.trainer(tmp_path, save_steps=9, eval_strategy="epoch", data_seed=42, max_steps=18)
    again.train(resume_from_checkpoint=True)
    assert said_in(caplog) == []
    assert records_of(tmp_path) == []


def test_the_settings_of_the_resumed_run_are_those_that_the_next_one_is_compared_with(small, tmp_path, caplog):
    small.trainer(tmp_path, small.Cut(4)).train()
    small.trainer(tmp_path, small.Cut(6), save_total_limit=3).train(resume_from_checkpoint=True)
    caplog.clear()
    small.trainer(tmp_path, save_total_limit=3).train(resume_from_checkpoint=True)
    assert said_in(caplog) == []


def test_a_checkpoint_without_settings_says_that_changes_are_not_known(small, tmp_path, caplog):
    class Older:
        name = "older"

        def read_checkpoint(self, trainer):
            trainer.load_state_dict({name: value for name, value in state.items() if name != "settings"})
            return tmp_path

    trainer = small.trainer(tmp_path / "a", small.Cut(4), kept := Kept(), block_plugins=["checkpointing"])
    trainer.train()
    state = kept.state
    again = small.trainer(tmp_path / "b", Older(), block_plugins=["checkpointing"], seed=7)
    again.train(resume_from_checkpoint=True)
    assert said_in(caplog) == [
        "settings: the checkpoint does not hold those of its run. What was changed since then is not known."
    ]
    assert again.outcome == "completed"


class Kept:
    """Keeps the state of the run after its last update."""

    name = "kept"

    def on_train_end(self, trainer):
        self.state = trainer.state_dict()


@pytest.mark.parametrize("optim", ["sgd", "adagrad"])
def test_another_optimizer_is_refused_with_what_else_is(optim, small, tmp_path):
    small.trainer(tmp_path, small.Cut(4)).train()
    with pytest.raises(SettingsError) as caught:
        small.trainer(tmp_path, optim=optim, seed=1).train(resume_from_checkpoint=True)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["seed", "optim"]


@pytest.mark.parametrize(("before", "now"), [(0.0, 0.1), (0.1, 0.0)])
def test_a_weight_decay_that_groups_the_parameters_anew_is_refused(before, now, small, tmp_path):
    small.trainer(tmp_path, small.Cut(4), weight_decay=before).train()
    with pytest.raises(SettingsError) as caught:
        small.trainer(tmp_path, weight_decay=now, seed=1).train(resume_from_checkpoint=True)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "seed: the rest of the run would draw other random numbers",
        "weight_decay: the optimizer would have other groups of parameters than its state in the checkpoint",
    ]


def test_the_same_optimizer_by_another_name_goes_on(small, tmp_path, caplog):
    small.trainer(tmp_path, small.Cut(4), optim="adamw_torch").train()
    caplog.clear()
    again = small.trainer(tmp_path, optim="adamw_torch_fused", optim_args="amsgrad=true")
    again.train(resume_from_checkpoint=True)
    assert said_in(caplog)[1:] == [
        "  optim: 'adamw_torch_fused' (from keyword), was 'adamw_torch'; the run goes on with that of its checkpoint, "
        "start anew to change it.",
        "  optim_args: 'amsgrad=true' (from keyword), was None; the run goes on with that of its checkpoint, start "
        "anew to change it.",
    ]
    assert again.outcome == "completed"


def test_a_schedule_of_another_kind_is_refused_and_another_curve_is_said(small, tmp_path, caplog):
    small.trainer(tmp_path, small.Cut(4), eval_strategy="epoch").train()
    with pytest.raises(SettingsError) as caught:
        small.trainer(tmp_path, eval_strategy="epoch", lr_scheduler_type="reduce_lr_on_plateau").train(
            resume_from_checkpoint=True
        )
    assert caught.value.problems == [
        "lr_scheduler_type: the state in the checkpoint is of another kind; the run of the checkpoint had 'linear', "
        "got 'reduce_lr_on_plateau' (from keyword). Go back to 'linear', or start anew from its weights."
    ]
    caplog.clear()
    again = small.trainer(tmp_path, eval_strategy="epoch", lr_scheduler_type="constant", logging_steps=1)
    again.train(resume_from_checkpoint=True)
    assert said_in(caplog)[1:] == [
        "  lr_scheduler_type: 'constant' (from keyword), was 'linear'; the rate follows the new curve from here on, at "
        "the step where it is."
    ]
    rates = [row["learning_rate"] for row in again.state.log_history if row.get("step", 0) > 4 and "loss" in row]
    assert set(rates) == {0.05}


def test_an_optimizer_of_the_users_own_is_compared_too(small, tmp_path, caplog):
    def run(rate, kind=torch.optim.SGD, **resuming):
        trainer = small.trainer(tmp_path, *([] if resuming else [small.Cut(4)]))
        trainer.optimizer = kind(trainer.model.parameters(), lr=rate)
        trainer.train(**resuming)
        return trainer

    run(0.05)
    caplog.clear()
    run(0.5, resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert said_in(caplog)[1:] == [
        "  learning_rate: 0.5, was 0.05; the run goes on with that of its checkpoint, start anew to change it."
    ]
    with pytest.raises(SettingsError, match="optim: the state in the checkpoint is of another kind"):
        run(0.05, torch.optim.Adagrad, resume_from_checkpoint=tmp_path / "checkpoint-4")


# The length of a run ----------------------------------------------------------------------------------------------

STEADY = {"lr_scheduler_type": "constant", "save_steps": 3}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"max_steps": 9}, {"max_steps": 14}),
        ({"max_steps": 12}, {"max_steps": 14}),
        ({"num_train_epochs": 1}, {"num_train_epochs": 3}),
        ({"num_train_epochs": 1.5}, {"num_train_epochs": 2.4}),
        ({"num_train_epochs": 1}, {"max_steps": 14}),
    ],
    ids=str,
)
def test_a_run_that_is_done_goes_on_when_it_is_made_longer(first, then, small, tmp_path, assert_same, caplog):
    whole = small.trainer(tmp_path / "whole", **STEADY, **then)
    whole.train()
    small.trainer(tmp_path / "run", **STEADY, **first).train()
    caplog.clear()
    again = small.trainer(tmp_path / "run", **STEADY, **then)
    again.train(resume_from_checkpoint=True)
    assert any("the run ends at update" in line for line in said_in(caplog))
    assert again.state.global_step == whole.state.global_step
    expected, actual = small.outcome(whole), small.outcome(again)
    for part in ("model", "optimizer"):
        assert_same(expected[part], actual[part], part)


def test_the_schedule_of_a_longer_run_is_that_of_one_so_long_from_the_start(small, tmp_path):
    whole = small.trainer(tmp_path / "whole", max_steps=14, logging_steps=1)
    whole.train()
    small.trainer(tmp_path / "run", max_steps=9, logging_steps=1).train()
    again = small.trainer(tmp_path / "run", max_steps=14, logging_steps=1)
    again.train(resume_from_checkpoint=True)
    rates = [
        [row["learning_rate"] for row in trainer.state.log_history if "loss" in row and row["step"] > 9]
        for trainer in (whole, again)
    ]
    assert rates[0] == rates[1]
    assert len(rates[0]) == 5


def test_a_run_that_was_stopped_for_good_stays_so_however_long_it_is_made(small, tmp_path, caplog):
    class Stop:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 7:
                trainer.request(Signal.STOP, by="enough", why="it is enough")

    small.trainer(tmp_path, Stop()).train()
    caplog.clear()
    again = small.trainer(tmp_path, num_train_epochs=9)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 7
    assert "  num_train_epochs: 9 (from keyword), was 3; enough ended the run, which stays ended." in said_in(caplog)


@pytest.mark.parametrize(("shorter", "value"), [({"num_train_epochs": 1}, "1"), ({"max_steps": 9}, "9")])
def test_a_run_that_would_be_over_already_is_refused(shorter, value, small, tmp_path):
    small.trainer(tmp_path, small.Cut(10)).train()
    with pytest.raises(SettingsError) as caught:
        small.trainer(tmp_path, **shorter).train(resume_from_checkpoint=True)
    (name,) = shorter
    (problem,) = [problem for problem in caught.value.problems if problem.startswith(name)]
    before, steps = ("3 (from keyword)", 6) if name == "num_train_epochs" else ("-1", 9)
    assert problem == (
        f"{name}: 10 updates are done, and the run would have {steps}; the run of the checkpoint had {before}, "
        f"got {value} (from keyword). Go back to {before.split()[0]}, or start anew from its weights."
    )


def test_secrets_are_in_no_file_of_a_checkpoint(small, tmp_path):
    secret = "hf_" + "s3cr3t" * 6
    small.trainer(tmp_path, hub_token=secret, max_steps=2, save_steps=2).train()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.name for file in files if secret.encode() in file.read_bytes()] == []
    state = json.loads((tmp_path / "checkpoint-2" / "state.json").read_text())
    assert "settings" in str(state)
