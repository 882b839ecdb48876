"""What the tests of the core share: a tiny model, tiny data, arguments without the built-in plugins, a recorder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from trainer_core import Trainer, TrainingArguments, hookspecs
from trainer_core.hookspecs import PROJECT
from trainer_core.settings.discovery import installed_names

BUILT_IN = sorted(installed_names())
HOOKS = tuple(name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), f"{PROJECT}_spec"))
TOLD = tuple(name for name in HOOKS if name.startswith("on_"))


class Classifier(nn.Module):
    """Three classes from four numbers; gives its loss when it is given labels."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x, labels=None):
        logits = self.head(torch.relu(self.hidden(x)))
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Recorder:
    """A plugin that notes every told hook, by name, in `heard`."""

    def __init__(self, *hooks):
        self.heard = []
        for hook in hooks or TOLD:
            setattr(self, hook, self._noting(hook))

    def _noting(self, hook):
        def note(trainer):
            self.heard.append(hook)

        return note


class Acting:
    """A plugin that calls `action(trainer)` in one hook, `times` times at most."""

    def __init__(self, hook, action, times=10**6):
        self.left = times

        def act(trainer):
            if self.left:
                self.left -= 1
                action(trainer)

        setattr(self, hook, act)


class Writer:
    """A plugin that answers `write_checkpoint` without writing."""

    def __init__(self, folder):
        self.folder = folder
        self.steps = []

    def write_checkpoint(self, trainer):
        self.steps.append(trainer.state.global_step)
        return self.folder / f"checkpoint-{trainer.state.global_step}"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """One thread: the tests run beside each other."""
    torch.set_num_threads(1)


@pytest.fixture
def make_model():
    """Gives a function that makes the tiny model, the same at each call."""

    def make(kind=Classifier):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return kind()

    return make


@pytest.fixture
def make_data():
    """Gives a function that makes a dataset of `rows` labelled rows, as tuples."""

    def make(rows=40, seed=0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 4, generator=generator)
        return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())

    return make


@pytest.fixture
def make_rows(make_data):
    """Gives a function that makes the same rows as a list of mappings."""
    return lambda rows=40, seed=0: [{"x": x, "labels": label} for x, label in make_data(rows, seed)]


@pytest.fixture
def make_args(tmp_path):
    """Gives a function that makes arguments without the built-in plugins, writing into a folder of this test."""

    def make(**options):
        settled = {"output_dir": tmp_path / "run", "block_plugins": BUILT_IN, "per_device_train_batch_size": 4}
        return TrainingArguments(**{**settled, "num_train_epochs": 1, **options})

    return make


@pytest.fixture
def make_trainer(make_args, make_model, make_data):
    """Gives a function that makes a trainer; arguments of `Trainer` in `given`, all others are settings.

    It trains 40 rows in batches of 4, one epoch, and evaluates the same number of other rows.
    """

    def make(kind=Trainer, given=None, **options):
        settled = {"model": make_model(), "train_dataset": make_data(), "eval_dataset": make_data(40, seed=1)}
        if "model_init" in (given or {}):
            del settled["model"]
        return kind(**{"args": make_args(**options), **settled, **(given or {})})

    return make


@pytest.fixture
def recorder():
    """Gives the class of a plugin that notes what it hears."""
    return Recorder


@pytest.fixture
def acting():
    """Gives the class of a plugin that acts in one hook."""
    return Acting


@pytest.fixture
def writer(tmp_path):
    """Gives a plugin that answers `write_checkpoint`."""
    return Writer(tmp_path)


@pytest.fixture
def told_hooks():
    """Gives the names of all told hooks."""
    return TOLD
