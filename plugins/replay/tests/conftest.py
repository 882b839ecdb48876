"""What the tests of this distribution share: a small run with all that makes a replay hard."""

from __future__ import annotations

import hashlib
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
    """Ends the run at an update in order; saved there or not."""

    def __init__(self, step, saved=True):
        self.step, self.saved = step, saved

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.step:
            if self.saved:
                trainer.request(Signal.SAVE, by="cut", why="the test says so")
            trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)


@pytest.fixture
def cut():
    return Cut


@pytest.fixture
def make(tmp_path):
    """Gives a function that makes a trainer of 12 updates of two micro-batches, saved after updates 4, 8 and 12.

    The model has dropout, the data is shuffled; each update is recorded, and the parameters of every second.
    """

    def make(*plugins, kind=Trainer, given=None, **options):
        settled = {"block_plugins": ["console", "logging"], "per_device_train_batch_size": 2, "num_train_epochs": 2}
        settled |= {"gradient_accumulation_steps": 2, "save_steps": 4}
        if options.get("digest_steps", 1) is not None:
            settled |= {"digest_steps": 1, "digest_parameter_steps": 2}
        args = TrainingArguments(**{"output_dir": tmp_path / "run", **settled, **options})
        own = {"model": tiny_model(), "train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(4, seed=1)}
        return kind(**{**own, "args": args, "plugins": plugins, **(given or {})})

    return make


@pytest.fixture
def digests():
    """Gives a function that reads the records of digests in a journal: (step, values)."""

    def read(path):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(line["step"], line["values"]) for line in lines if line.get("kind") == "digests"]

    return read


@pytest.fixture
def snapshot():
    """Gives a function that gives name, time and content of every file in a folder."""

    def snapshot(folder):
        return {
            str(path.relative_to(folder)): (
                path.stat().st_mtime_ns,
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            )
            for path in sorted(folder.rglob("*"))
        }

    return snapshot
