"""What the tests of this plugin share."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

from trainer_core.testing import only
from trainer_core.testing.tiny import tiny_trainer


@pytest.fixture(autouse=True, scope="module")
def apart(tmp_path_factory):
    """Keeps trackers on this machine and out of the caller's folders."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    variables = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": home,
        "WANDB_SILENT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "TRACKIO_DIR": home / "trackio",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, str(value))
        yield home


class EndError(BaseException):
    """Ends a run on purpose."""


class FailsAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.step:
            raise EndError("the test ends it")


def make(folder, plugins=(), **options):
    """Gives the trainer of 24 updates in two epochs, with a row every 5 and an evaluation after each epoch."""
    usual = {"logging_steps": 5, "save_strategy": "no"}
    return tiny_trainer(Path(folder), plugins, options={**usual, **options})


@pytest.fixture(autouse=True, scope="module")
def installed(apart):
    """Blocks the plugins that are not needed, for every test of a module."""
    with only("trackers", "logging", "checkpointing"):
        yield


@pytest.fixture(scope="session")
def trainer_of():
    return make


@pytest.fixture(scope="session")
def failing():
    """Gives a function that trains until a step at which the run fails."""

    def train(folder, step, **options):
        trainer = make(folder, [FailsAt(step)], **options)
        with pytest.raises(EndError):
            trainer.train()
        return trainer

    return train


@pytest.fixture(scope="session")
def rows_of():
    """Gives a function from a log history to (metric, step) -> values, spelled out here once more."""

    def read(history):
        found = {}
        for row in history:
            for name, value in row.items():
                first, _, rest = name.partition("_")
                if name != "step":
                    key = f"{first}/{rest}" if first in ("eval", "test") else f"train/{name}"
                    found.setdefault((key, row["step"]), []).append(value)
        return found

    return read


@pytest.fixture
def warnings_of(caplog):
    """Gives a function that gives what the plugin warned of."""

    def read():
        return [record.getMessage() for record in caplog.records if record.name == "trainer_core.trackers"]

    caplog.set_level(logging.WARNING, "trainer_core.trackers")
    return read


@pytest.fixture(scope="session")
def table():
    """Gives a function that reads a table of an SQLite file."""

    def read(path, query):
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(query).fetchall()

    return read
