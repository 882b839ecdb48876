"""When checkpoints are written, which is the best, and what the plan says of them."""

from __future__ import annotations

import json
import logging
import os
from typing import ClassVar

import pytest
import torch

from trainer_core import SettingsError, Signal, TrainingArguments
from trainer_core.testing import PluginConformance
from trainer_core_checkpointing import Checkpointing, CheckpointingSettings
from trainer_core_checkpointing.manifest import read_manifest


def steps(output_dir):
    return sorted(int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*"))


def saves(output_dir):
    lines = [json.loads(line) for line in (output_dir / "journal.jsonl").read_text().splitlines()]
    return [(line["step"], line["by"], line["why"]) for line in lines if line["next"] == "SAVE"]


class Scores:
    """Sets the metric of each evaluation."""

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, prediction):
        return {"score": self.values.pop(0) if self.values else 0.0}


def scored(small, output_dir, *values, **options):
    trainer = small.trainer(output_dir, metric_for_best_model="score", greater_is_better=True, **options)
    trainer.compute_metrics = Scores(*values)
    return trainer


# When ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_steps": 5}, [5, 10, 15, 18]),
        ({"save_steps": 0.25}, [5, 10, 15, 18]),
        ({"save_steps": 100}, [18]),
        ({"save_strategy": "epoch"}, [6, 12, 18]),
        ({"save_strategy": "epoch", "num_train_epochs": 1.5}, [6, 9]),
        ({"save_strategy": "no"}, []),
        ({"save_steps": 5, "save_total_limit": 2}, [15, 18]),
        ({"checkpointing": None}, []),
    ],
)
def test_checkpoints_are_where_the_settings_and_the_plan_say(options, expected, small, tmp_path):
    trainer = small.trainer(tmp_path, **options)
    planned = trainer.plan().steps_of("save")
    trainer.train()
    assert steps(tmp_path) == expected
    assert planned[-len(expected) or len(planned) :] == expected


def test_the_journal_says_why_each_was_written(small, tmp_path):
    small.trainer(tmp_path, save_steps=12).train()
    assert saves(tmp_path) == [(12, "save_steps", "every 12 updates"), (18, "save_steps", "the last update, 18")]


def test_a_run_that_is_stopped_early_is_saved_where_it_stops(small, tmp_path):
    class Stopping:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 8:
                trainer.request(Signal.STOP, by="patience", why="it is enough")

    trainer = small.trainer(tmp_path, Stopping(), save_steps=5)
    trainer.train()
    assert saves(tmp_path)[-1] == (8, "save_strategy", "patience ends the run after step 8")
    again = small.trainer(tmp_path, Stopping(), save_steps=5)
    again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, again.outcome) == (8, "stopped")
    assert steps(tmp_path) == [5, 8]


def test_a_request_of_anybody_is_served(small, tmp_path):
    class Asking:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 7:
                trainer.request(Signal.SAVE, by="asking", why="of interest")

    small.trainer(tmp_path, Asking(), save_strategy="no").train()
    assert saves(tmp_path) == [(7, "asking", "of interest")]
    assert steps(tmp_path) == [7]


def test_save_steps_without_its_strategy_is_said_to_be_ignored(small, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        small.trainer(tmp_path, save_strategy="no", save_steps=5).train()
    told = "save_steps: has no effect with save_strategy='no', got 5 (from keyword). Leave out one of the two."
    assert told in caplog.messages


# Best ------------------------------------------------------------------------------------------------------------

EVALUATED = {"eval_strategy": "steps", "eval_steps": 4}  # after 4, 8, 12, 16, 18


def test_strategy_best_saves_at_each_new_best_and_says_so(small, tmp_path):
    trainer = scored(small, tmp_path, 0.1, 0.5, 0.3, 0.5, 0.9, save_strategy="best", **EVALUATED)
    trainer.train()
    assert saves(tmp_path) == [
        (4, "save_strategy", "new best eval_score 0.1"),
        (8, "save_strategy", "new best eval_score 0.5"),
        (18, "save_strategy", "new best eval_score 0.9"),
    ]
    assert trainer.state.best_model_checkpoint == os.path.join(trainer.args.output_dir, "checkpoint-18")
    assert trainer.loaded_best_from is None


def test_the_best_model_is_kept_and_loaded_although_no_save_was_due_with_it(small, tmp_path):
    weights = {}

    class Keeping:
        def on_new_best(self, trainer):
            weights.update({name: value.clone() for name, value in trainer.model.state_dict().items()})

    options = {"save_steps": 5, "save_total_limit": 1, "load_best_model_at_end": True}
    trainer = small.trainer(
        tmp_path, Keeping(), metric_for_best_model="score", greater_is_better=True, **options, **EVALUATED
    )
    trainer.compute_metrics = Scores(0.1, 0.5, 0.3, 0.5, 0.4)
    trainer.train()
    assert steps(tmp_path) == [8, 18]
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.5, 8)
    assert trainer.state.best_model_checkpoint == os.path.join(trainer.args.output_dir, "checkpoint-8")
    assert trainer.loaded_best_from == tmp_path / "checkpoint-8"
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())


def test_without_a_save_of_its_own_the_best_has_no_checkpoint(small, tmp_path):
    trainer = scored(small, tmp_path, 0.1, 0.5, 0.3, 0.9, 0.4, save_steps=8, **EVALUATED)
    trainer.train()
    assert trainer.state.best_global_step == 16
    assert trainer.state.best_model_checkpoint == os.path.join(trainer.args.output_dir, "checkpoint-16")
    trainer = scored(small, tmp_path / "other", 0.1, 0.5, 0.9, 0.3, 0.4, save_steps=8, **EVALUATED)
    trainer.train()
    assert trainer.state.best_global_step == 12
    assert trainer.state.best_model_checkpoint is None


def test_an_evaluation_after_the_save_of_its_step_makes_that_the_best(small, tmp_path):
    options = {"save_steps": 6, "load_best_model_at_end": True, "eval_strategy": "epoch"}
    trainer = scored(small, tmp_path, 0.1, 0.5, 0.3, **options)
    trainer.train()
    assert steps(tmp_path) == [6, 12, 18]
    assert trainer.loaded_best_from == tmp_path / "checkpoint-12"


def test_the_best_of_before_is_loaded_after_a_resume_and_a_move(small, tmp_path):
    options = {"save_strategy": "no", "load_best_model_at_end": True} | EVALUATED
    first = scored(small, tmp_path / "a", 0.1, 0.9, 0.3, **options)
    first.add_callback(small.Cut(13))
    first.train()
    (tmp_path / "a").rename(tmp_path / "b")
    again = scored(small, tmp_path / "b", 0.2, 0.3, **options)
    again.train(resume_from_checkpoint=True)
    assert again.resumed_from == tmp_path / "b" / "checkpoint-13"
    assert again.loaded_best_from == tmp_path / "b" / "checkpoint-8"
    elsewhere = scored(small, tmp_path / "c", 0.2, 0.3, **options)
    elsewhere.train(resume_from_checkpoint=tmp_path / "b" / "checkpoint-13")
    assert elsewhere.loaded_best_from == tmp_path / "b" / "checkpoint-8"


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_best_model_that_is_gone_is_said_and_the_last_one_stays(damage, small, tmp_path, caplog):
    class Damaging:
        def on_train_begin(self, trainer):
            pass

        def on_step_end(self, trainer):
            file = tmp_path / "checkpoint-4" / "model.safetensors"
            if trainer.state.global_step == 10 and damage == "missing":
                file.parent.rename(tmp_path / "gone")
            elif trainer.state.global_step == 10:
                file.write_bytes(file.read_bytes()[:-1])

    trainer = scored(small, tmp_path, 0.9, load_best_model_at_end=True, save_strategy="no", **EVALUATED)
    trainer.add_callback(Damaging())
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.loaded_best_from is None
    assert "load_best_model_at_end: the model keeps the weights of the last step" in caplog.text
    assert str(tmp_path / "checkpoint-4") in caplog.text


# Settings and plan -----------------------------------------------------------------------------------------------


def test_flat_names_and_the_section_are_one_thing(tmp_path):
    flat = TrainingArguments(str(tmp_path), save_strategy="epoch", save_total_limit=3, save_only_model=True)
    nested = TrainingArguments(str(tmp_path), checkpointing={"strategy": "epoch", "total_limit": 3, "only_model": True})
    assert flat == nested
    assert flat.section("checkpointing") == CheckpointingSettings(strategy="epoch", total_limit=3, only_model=True)
    assert (flat.save_steps, flat.load_best_model_at_end, flat.resume_from_checkpoint) == (500, False, None)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"save_strategy": "epochs"}, "save_strategy: must be one of 'no', 'steps', 'epoch', 'best', got 'epochs' "
         "(from keyword). Did you mean 'epoch'?"),
        ({"save_steps": 0}, "save_steps: must be greater than 0, got 0 (from keyword). Use a value above 0."),
        ({"save_steps": 1.5}, "save_steps: must be a whole number of steps or a share below 1, got 1.5 (from keyword). "
         "Round it."),
        ({"save_total_limit": 0}, "save_total_limit: must be at least 1, got 0 (from keyword). Use 1 or more."),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: needs evaluations, and there are none, got True "
         "(from keyword). Set eval_strategy."),
        ({"save_strategy": "best"}, "save_strategy: needs evaluations, and there are none, got 'best' (from keyword). "
         "Set eval_strategy."),
        ({"save_safetensors": False}, "save_safetensors: is not needed: weights are always saved as safetensors, "
         "got False (from keyword). Leave it out."),
        ({"save_on_each_node": True}, "save_on_each_node: is not offered: all ranks write into one checkpoint, which "
         "is whole or not there, got True (from keyword). Put output_dir on storage that all nodes share."),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_answered_in_one_sentence(options, problem, tmp_path):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(str(tmp_path), **options)
    assert caught.value.problems == [problem]


def test_a_best_model_by_a_metric_that_nobody_computes_is_refused_before_training(small, tmp_path):
    trainer = small.trainer(tmp_path, load_best_model_at_end=True, eval_strategy="epoch", metric_for_best_model="f1")
    with pytest.raises(SettingsError, match="metric_for_best_model: no evaluation gives this metric, got 'f1'"):
        trainer.train()


def test_the_plan_tells_saves_and_disk(small, tmp_path):
    trainer = small.trainer(tmp_path, save_steps=5, save_total_limit=2, load_best_model_at_end=True, **EVALUATED)
    plan = trainer.plan()
    assert [(entry.by, entry.note) for entry in plan.scheduled if entry.what == "save"] == [
        ("save_steps", ""),
        ("load_best_model_at_end", "at each evaluation that is a new best"),
    ]
    trainer.train()
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoint-18").iterdir())
    assert 3 * size / 2 < plan.disk_bytes["checkpoints"] < 3 * (size + 80_000)


def test_the_plan_counts_what_optimizers_keep(small, tmp_path):
    def disk(**options):
        return small.trainer(tmp_path, save_steps=18, **options).plan().disk_bytes["checkpoints"]

    weights = sum(parameter.nbytes for parameter in small.Net().parameters())
    base = disk(optim="sgd")
    assert disk(optim="adamw_torch") - base == 2 * weights
    assert disk(optim="sgd", optim_args="momentum=0.9") - base == weights
    assert disk(optim="rmsprop") - base == weights
    assert disk(save_only_model=True) == base


# What ------------------------------------------------------------------------------------------------------------


def test_a_secret_is_masked(small, tmp_path, monkeypatch):
    trainer = small.trainer(tmp_path, lr_scheduler_kwargs={})
    given = trainer.args.to_dict() | {"hub_push": {"token": "hf_secret", "id": "x"}, "api_key": "k", "my_TOKEN": "t"}
    monkeypatch.setattr(type(trainer.args), "to_dict", lambda self: given)
    trainer.train()
    text = (tmp_path / "checkpoint-18" / "manifest.json").read_text()
    assert "hf_secret" not in text
    masked = read_manifest(tmp_path / "checkpoint-18").settings
    assert (masked["hub_push"], masked["api_key"], masked["my_TOKEN"]) == ({"token": "***", "id": "x"}, "***", "***")


def test_a_checkpoint_of_the_model_alone_is_small_and_not_resumed_from(small, tmp_path):
    from trainer_core import CheckpointError
    from trainer_core_checkpointing.weights import read_model

    trainer = small.trainer(tmp_path, save_only_model=True, save_steps=9)
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "checkpoint-18").iterdir()) == [
        "manifest.json",
        "model.safetensors",
    ]
    model = small.Net()
    read_model(model, tmp_path / "checkpoint-18")
    assert torch.equal(model.head.weight, trainer.model.head.weight)
    with pytest.raises(CheckpointError, match="holds the model alone, as save_only_model asked"):
        small.trainer(tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoint-9")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be resumed from"):
        small.trainer(tmp_path).train(resume_from_checkpoint=True)


def test_an_overridden_save_model_is_called(small, tmp_path):
    from trainer_core import Trainer, write_model

    class Own(Trainer):
        def save_model(self, output_dir=None):
            write_model(self.model, output_dir)
            (output_dir / "mine.txt").write_text("mine")

    trainer = small.trainer(tmp_path, save_steps=18)
    trainer.__class__ = Own
    trainer.train()
    assert "mine.txt" in read_manifest(tmp_path / "checkpoint-18").files


class TestPromises(PluginConformance):
    plugin_type = Checkpointing


class TestPromisesWithBestModel(PluginConformance):
    plugin_type = Checkpointing
    flat: ClassVar = {"load_best_model_at_end": True, "save_total_limit": 1, "eval_strategy": "epoch"}
