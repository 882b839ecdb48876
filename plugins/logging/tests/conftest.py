"""What the tests of this plugin share."""

import json
import logging

import pytest
import torch

from trainer_core.testing import run


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def train(tmp_path):
    """Gives a function that runs 24 updates in two epochs with this plugin alone; gives the trainer."""
    return lambda plugins=(), **options: run(plugins, installed=["logging"], output_dir=tmp_path, **options)


@pytest.fixture
def rows(tmp_path):
    """Gives a function that reads the rows of the file, each as strict JSON."""

    def refuse(constant):
        raise ValueError(constant)

    def read(name="log.jsonl"):
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line, parse_constant=refuse) for line in lines]

    return read


@pytest.fixture
def nobody_listens(monkeypatch):
    """Gives a function that takes the test tool's own handlers away; they come after the fixtures."""
    return lambda: monkeypatch.setattr(logging.root, "handlers", [])
