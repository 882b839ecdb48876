"""What the tests of checkpoints share: a small run with dropout, on data that can be random, and what is compared."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from trainer_core import InvalidCheckpointError, Signal, Trainer, TrainingArguments
from trainer_core.data.collation import default_data_collator
from trainer_core_checkpointing import files
from trainer_core_checkpointing.manifest import FileEntry

ROWS, EVAL_ROWS = 22, 10


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(6, 3)

    def forward(self, x, labels=None):
        logits = self.head(self.drop(self.norm(torch.relu(self.hidden(x)))))
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def table(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator)
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long()


class Augmented(Dataset):
    """Rows with noise of all three generators."""

    def __init__(self, rows):
        self.x, self.labels = table(rows)
        self.loaded = []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.loaded.append(index)
        noise = torch.randn(4) + random.gauss(0, 0.1) + float(np.random.normal())
        return {"x": self.x[index] + 0.1 * noise, "labels": self.labels[index]}


def augmenting_collator(samples):
    batch = default_data_collator(samples)
    batch["x"] = batch["x"] + 0.1 * torch.randn(batch["x"].shape) + 0.01 * random.random()
    return batch


class Patience:
    """A plugin with a memory."""

    def __init__(self):
        self.seen = []
        self.pair = (0, 0.0)

    def on_evaluate(self, trainer, metrics):
        self.seen.append(metrics["eval_loss"])
        self.pair = (len(self.seen), min(self.seen))

    def state_dict(self):
        return {"seen": self.seen, "pair": self.pair}

    def load_state_dict(self, state):
        self.seen, self.pair = state["seen"], state["pair"]


class Cut:
    """A plugin that ends the run at an update: in order (saved, to go on later) or with an error."""

    def __init__(self, step, *, raises=False):
        self.step, self.raises = step, raises

    def on_step_end(self, trainer):
        if trainer.state.global_step != self.step:
            return
        if self.raises:
            raise RuntimeError("the power went out")
        trainer.request(Signal.SAVE, by="cut", why="the test says so")
        trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)


class Small:
    """Makes and compares small runs."""

    Net, Augmented, Patience, Cut, table = Net, Augmented, Patience, Cut, staticmethod(table)
    augmenting_collator = staticmethod(augmenting_collator)

    def trainer(self, output_dir, *plugins, model=None, dataset=None, collator=None, eval_dataset=True, **options):
        torch.manual_seed(1)
        data = dataset if dataset is not None else TensorDataset(*table(ROWS))
        settings = {
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 0.05,
            "block_plugins": ["console"],
            "logging_steps": 2,
        }
        settings |= options
        if "logging" in settings["block_plugins"]:
            del settings["logging_steps"]
        return Trainer(
            model=model if model is not None else Net(),
            args=TrainingArguments(str(output_dir), **settings),
            train_dataset=data,
            eval_dataset=TensorDataset(*table(EVAL_ROWS, 5)) if eval_dataset is True else eval_dataset,
            data_collator=collator,
            plugins=[Patience(), *plugins],
        )

    def outcome(self, trainer):
        """Gives everything that must be equal to the bit."""
        patience = trainer.bus.members["Patience"].plugin
        schedule = trainer.lr_scheduler.state_dict() if trainer.lr_scheduler is not None else None
        return copy.deepcopy(
            {
                "model": trainer.model.state_dict(),
                "optimizer": trainer.optimizer.state_dict(),
                "schedule": schedule,
                "history": [untimed(row) for row in trainer.state.log_history],
                "counters": trainer.state.counters(),
                "patience": patience.state_dict(),
            }
        )


def untimed(row):
    return {name: value for name, value in row.items() if not name.endswith(("_runtime", "_per_second"))}


def same(one, other, where=""):
    """Asserts equality to the bit, and names the first place that differs."""
    assert type(one) is type(other), f"{where}: {one!r} is not {other!r}"
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), f"{where}: {one} is not {other}"
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for name in one:
            same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), f"{where}: {one} is not {other}"
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            same(mine, theirs, f"{where}[{place}]")
    else:
        assert one == other or one != one, f"{where}: {one!r} is not {other!r}"  # NaN is no other


@pytest.fixture
def small():
    torch.set_num_threads(1)
    return Small()


@pytest.fixture
def assert_same():
    return same


def pytest_configure():
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)


@pytest.fixture
def evaluations():
    """Gives (step, reason) of each evaluation that a journal tells of, once each."""

    def read(output_dir):
        lines = [json.loads(line) for line in (output_dir / "journal.jsonl").read_text().splitlines()]
        return sorted({(line["step"], line["why"]) for line in lines if line["next"] == "EVAL"})

    return read


@pytest.fixture
def forked(tmp_path):
    """Copies an output folder, as it was, so that one run can be cut and resumed in many ways."""

    def copy_of(output_dir, name):
        target = tmp_path / name
        shutil.copytree(output_dir, target)
        return target

    return copy_of


class FaultyDisk(files.Calls):
    """A disk of which one call in the save of one update fails.

    Args:
        step: the update.
        which: index of the call that fails, counted from the beginning of that save.
        number: the error.
        lasts: all calls from that one on fail, until the next save.
    """

    def __init__(self, step, which, number=errno.ENOSPC, *, lasts=False):
        self.staging = f".tmp-checkpoint-{step}-"
        self.which, self.number, self.lasts = which, number, lasts
        self.is_on, self.made = False, []

    def _count(self, call, path):
        if call == "mkdir":
            self.is_on = path.name.startswith(self.staging)
        if not self.is_on:
            return
        self.made.append((call, str(path)))
        place = len(self.made) - 1
        if place == self.which or (self.lasts and place > self.which):
            raise OSError(self.number, os.strerror(self.number))

    def free_bytes(self, path):
        return 2**40

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name.startswith("_") or name not in vars(files.Calls) or name == "free_bytes":
            return found

        def counted(*arguments):
            self._count(name, arguments[-1] if name == "rename" else arguments[0])
            return found(*arguments)

        return counted


@pytest.fixture
def disk(monkeypatch):
    """Puts a faulty disk under the file layer."""

    def put(step, which, number=errno.ENOSPC, **options):
        faulty = FaultyDisk(step, which, number, **options)
        monkeypatch.setattr(files, "calls", faulty)
        return faulty

    return put


@pytest.fixture(scope="session")
def seal_of():
    """Gives the function that gives what the manifest says of a file with some content."""
    return lambda content, *, grows=False: FileEntry(len(content), hashlib.sha256(content).hexdigest(), grows)


@pytest.fixture(scope="session")
def refusal():
    """Gives the function that gives the words in which a call refuses a file."""

    def refused(function, *arguments, **options):
        with pytest.raises(InvalidCheckpointError) as caught:
            function(*arguments, **options)
        return str(caught.value)

    return refused
