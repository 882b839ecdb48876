"""What the tests of searches share: a small trainer, spaces, and what a search left."""

import csv
import gc
import json
import logging
import shutil
from pathlib import Path

import optuna
import pytest
import torch

from trainer_core import Trainer, TrainingArguments
from trainer_core.settings.discovery import installed_names
from trainer_core.testing import TinyModel, tiny_dataset


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Trains on one thread, and keeps what is loaded out of the collections of garbage between trials: time."""
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()


def rate(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)}


@pytest.fixture
def space():
    """Gives a space of learning rates."""
    return rate


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """Gives a database without a search: making its tables takes longer than a trial."""
    path = tmp_path_factory.mktemp("empty") / "tuning.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path


@pytest.fixture
def small(tmp_path, empty):
    """Gives a function that makes a trainer of 12 updates in two epochs, with this plugin and those named."""

    def trainer(kind=Trainer, installed=(), given=None, **options):
        usual = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "eval_strategy": "epoch",
            "block_plugins": sorted(installed_names() - {"tuning", *installed}),
        }
        tuning = {"plot": None} | options.pop("tuning", {})
        objects = {"model_init": TinyModel, "train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(8, seed=1)}
        args = TrainingArguments(**{"output_dir": tmp_path / "out", "tuning": tuning, **usual, **options})
        database = Path(args.output_dir) / "tuning.db"
        if not database.exists() and "storage" not in tuning:
            database.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(empty, database)
        return kind(args=args, **(objects | (given or {})))

    return trainer


@pytest.fixture
def study(tmp_path):
    """Gives a function that opens the search as Optuna itself does."""
    return lambda: optuna.load_study(study_name="tuning", storage=f"sqlite:///{tmp_path}/out/tuning.db")


@pytest.fixture
def states(study):
    """Gives a function that reads the states of all trials, and a killed one's successor."""
    return lambda: [trial.state.name for trial in study().trials]


@pytest.fixture
def rows(tmp_path):
    """Gives a function that reads the table."""

    def read():
        with (tmp_path / "out" / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture
def stops(tmp_path):
    """Gives a function that reads who stopped a run, and why."""

    def read(run):
        lines = [json.loads(line) for line in (tmp_path / "out" / run / "journal.jsonl").read_text().splitlines()]
        return [(line["step"], line["by"], line["why"]) for line in lines if line["next"] == "STOP"]

    return read


@pytest.fixture
def told(caplog):
    """Gives a function that gives the search's own warnings."""
    caplog.set_level(logging.INFO, "trainer_core.tuning")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
