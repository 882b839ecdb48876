"""What the tests of this distribution share: a small run whose evaluations give what a test wants."""

from __future__ import annotations

import json
import os

import pytest
import torch

from trainer_core import Signal, Trainer, TrainingArguments
from trainer_core.testing import tiny_dataset, tiny_model


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_flushes(monkeypatch):
    """What a flush is for is no matter here; on a busy disk they would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Cut:
    """Ends the run at an update in order: saved, to go on later; the evaluation of that update waits for then."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        self.cut(trainer)

    def cut(self, trainer):
        if trainer.state.global_step == self.step:
            trainer.request(Signal.SAVE, by="cut", why="the test says so")
            trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)


class CutLater(Cut):
    """The same after the evaluation of that update."""

    def on_step_end(self, trainer):
        pass

    def on_eval_end(self, trainer):
        self.cut(trainer)


@pytest.fixture
def cut():
    return Cut


@pytest.fixture
def cut_later():
    return CutLater


@pytest.fixture
def make(tmp_path):
    """Gives a function that makes a trainer of 12 updates an epoch, which evaluates after each.

    The evaluation after update k gives the k-th of `scores` as `eval_score`; the last one for all that follow, and
    before training.
    """

    def make(scores=(0.5,), *plugins, folder="run", kind=Trainer, given=None, **options):
        def compute_metrics(prediction):
            return {"score": scores[min(trainer.state.global_step, len(scores)) - 1]}

        settled = {"block_plugins": ["console", "logging"], "per_device_train_batch_size": 2, "num_train_epochs": 1}
        settled |= {"eval_strategy": "steps", "eval_steps": 1, "greater_is_better": True}
        trainer = kind(
            **{
                "model": tiny_model(),
                "args": TrainingArguments(
                    tmp_path / folder, **{**settled, "metric_for_best_model": "score", **options}
                ),
                "train_dataset": tiny_dataset(),
                "eval_dataset": tiny_dataset(4, seed=1),
                "compute_metrics": compute_metrics,
                "plugins": plugins,
                **(given or {}),
            }
        )
        return trainer

    return make


@pytest.fixture
def end():
    """Gives a function that trains and says at which update, how and why the run ended."""

    def end(trainer, **resume):
        trainer.train(**resume)
        stop = trainer.stop_request
        return trainer.state.global_step, trainer.outcome, stop.by, stop.why

    return end


@pytest.fixture
def journal():
    """Gives a function that reads (update, author, reason) of each stop in a journal, once each."""

    def read(trainer):
        lines = [json.loads(line) for line in trainer.journal_path.read_text(encoding="utf-8").splitlines()]
        return sorted({(line["step"], line["by"], line["why"]) for line in lines if line["signal"] == "STOP"})

    return read
