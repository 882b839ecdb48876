"""Metrics and the state of a run, shown and kept for the user's script."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from tests.toys import Classifier, named_rows, pairs, trainer_for
from trainer_core import DataError, Signal
from trainer_core.results import STATE_KEYS, write_json

METRICS = {
    "eval_runtime": 3723.456,
    "eval_loss": 0.123456789,
    "epoch": 3.0,
    "eval_samples": 1200,
    "train_mem_cpu_alloc_delta": 3 * 2**20,
    "perplexity": 1234.56789,
    "tiny": 0.0000123456,
    "labels": ["a", "b"],
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.fixture
def trainer(tmp_path):
    return trainer_for(tmp_path / "new", Classifier(), pairs(12), given={"eval_dataset": named_rows(5)})


def test_metrics_are_written_as_one_reads_them(trainer):
    assert trainer.metrics_format(METRICS) == {
        "eval_runtime": "1:02:03.46",
        "eval_loss": 0.1235,
        "epoch": 3.0,
        "eval_samples": 1200,
        "train_mem_cpu_alloc_delta": "3MiB",
        "perplexity": 1234.5679,
        "tiny": 0.00001235,
        "labels": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [
        (0, "0:00:00.00"),
        (0.004, "0:00:00.00"),
        (59.999, "0:01:00.00"),
        (3599.995, "1:00:00.00"),
        (90061, "25:01:01.00"),
    ],
)
def test_times_are_hours_minutes_and_seconds(trainer, seconds, clock):
    assert trainer.metrics_format({"train_runtime": seconds}) == {"train_runtime": clock}


def test_what_is_no_number_stays_what_it_is(trainer):
    odd = {"a": math.inf, "b_runtime": None, "c": True, "d": np.float32(0.5), "e_runtime": math.inf}
    assert trainer.metrics_format(odd) == {"a": math.inf, "b_runtime": None, "c": True, "d": 0.5, "e_runtime": math.inf}


def test_metrics_are_printed_as_a_table_sorted_by_name(trainer, capsys):
    trainer.log_metrics("eval", {"eval_loss": 0.25, "epoch": 1.0, "eval_runtime": 61.5})
    assert capsys.readouterr().out.splitlines() == [
        "***** eval metrics *****",
        "  epoch        =        1.0",
        "  eval_loss    =       0.25",
        "  eval_runtime = 0:01:01.50",
    ]


def test_no_metrics_are_a_table_without_rows(trainer, capsys):
    trainer.log_metrics("test", {})
    assert capsys.readouterr().out == "***** test metrics *****\n"


def test_each_split_has_a_file_and_all_have_one_together(trainer, tmp_path):
    train = trainer.train().metrics
    trainer.save_metrics("train", train)
    trainer.save_metrics("eval", {"eval_loss": 0.5, "epoch": 1.0})
    trainer.save_metrics("test", {"test_loss": 0.25}, combined=False)
    folder = tmp_path / "new"
    assert read(folder / "train_results.json") == train
    assert read(folder / "eval_results.json") == {"eval_loss": 0.5, "epoch": 1.0}
    assert read(folder / "test_results.json") == {"test_loss": 0.25}
    assert read(folder / "all_results.json") == {**train, "eval_loss": 0.5, "epoch": 1.0}
    trainer.save_metrics("eval", {"eval_loss": 0.125})
    assert read(folder / "all_results.json") == {**train, "eval_loss": 0.125, "epoch": 1.0}


def test_files_are_strict_json_that_says_what_is_not_finite(trainer, tmp_path):
    odd = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf],
        "numpy": np.float64("nan"),
        "tensor": torch.tensor([1.0, math.inf]),
        "nested": {1: np.int64(3)},
        "path": tmp_path,
    }
    trainer.save_metrics("eval", odd)
    found = read(tmp_path / "new" / "eval_results.json")
    assert found == {
        "nan": "NaN",
        "inf": ["Infinity", "-Infinity"],
        "numpy": "NaN",
        "tensor": [1.0, "Infinity"],
        "nested": {"1": 3},
        "path": str(tmp_path),
    }
    assert [float(text) for text in found["inf"]] == [math.inf, -math.inf]


def test_a_file_of_all_splits_that_holds_something_else_is_left_alone(trainer, tmp_path):
    path = tmp_path / "new" / "all_results.json"
    for text in ("[1]", "{half", ""):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            trainer.save_metrics("eval", {"eval_loss": 1.0})
        told = "holds no JSON object, metrics cannot be added to it. Move the file away."
        assert str(caught.value) == f"{path}: {told}"
        assert path.read_text() == text


# trainer_state.json -----------------------------------------------------------------------------------------------


def test_the_state_of_a_run_is_kept_with_its_whole_history(trainer, tmp_path):
    trainer.train()
    trainer.evaluate()
    trainer.save_state()
    found = read(tmp_path / "new" / "trainer_state.json")
    assert found.keys() == set(STATE_KEYS)
    assert (found["global_step"], found["max_steps"], found["epoch"], found["train_batch_size"]) == (3, 3, 1.0, 4)
    assert found["log_history"] == trainer.state.log_history
    assert [{"train_loss", "eval_loss"} & row.keys() for row in found["log_history"]] == [{"train_loss"}, {"eval_loss"}]


def test_transformers_reads_the_state(trainer, tmp_path):
    original = pytest.importorskip("transformers").TrainerState
    trainer.train()
    trainer.save_state()
    found = original.load_from_json(str(tmp_path / "new" / "trainer_state.json"))
    assert (found.global_step, found.epoch, found.log_history) == (3, 1.0, trainer.state.log_history)
    assert set(STATE_KEYS) <= set(vars(found))


# Whole at every instant -------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 2})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    assert read(path) == {"old": 1}


def test_a_file_is_whole_when_its_writer_is_killed(tmp_path):
    path = tmp_path / "state.json"
    code = f"""
        from pathlib import Path
        from trainer_core.results import write_json
        number = 0
        while True:
            write_json(Path({str(path)!r}), {{"rows": [number] * 50_000}})
            number += 1
    """
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        deadline = time.monotonic() + 60
        first = path.stat().st_mtime_ns if path.exists() else 0
        while (not path.exists() or path.stat().st_mtime_ns == first) and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(20):
            assert len(set(read(path)["rows"])) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(read(path)["rows"]) == 50_000


# Ranks ------------------------------------------------------------------------------------------------------------


def test_other_ranks_print_and_write_nothing(trainer, tmp_path, capsys):
    trainer.ranks.is_main = False
    trainer.log_metrics("eval", {"eval_loss": 1.0})
    trainer.save_metrics("eval", {"eval_loss": 1.0})
    trainer.save_state()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "new").exists()


class Stopping:
    def on_step_end(self, trainer):
        trainer.request(Signal.STOP, by="test", why="enough")
        trainer.save_state()


def test_the_state_may_be_saved_while_a_run_goes_on(tmp_path):
    trainer_for(tmp_path, Classifier(), pairs(12), given={"plugins": [Stopping()]}).train()
    assert read(tmp_path / "trainer_state.json")["global_step"] == 1


@pytest.mark.parametrize("split", ["", "../evil", "a/b"])
def test_a_split_that_is_no_plain_name_is_refused(trainer, tmp_path, split):
    with pytest.raises(DataError, match="save_metrics: split must be a plain name, got "):
        trainer.save_metrics(split, METRICS)
    assert not list(tmp_path.rglob("*_results.json"))


def test_metrics_that_are_none_are_refused_and_nothing_is_written(trainer, tmp_path):
    with pytest.raises(DataError, match="save_metrics: metrics must be a mapping, got NoneType"):
        trainer.save_metrics("eval", None)
    assert not list(tmp_path.rglob("*_results.json"))


def test_results_that_are_no_file_are_not_waited_for(make_trainer, tmp_path):
    trainer = make_trainer()
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "all_results.json")
    trainer.save_metrics("eval", {"eval_loss": 1.0})
    assert json.loads((tmp_path / "run" / "all_results.json").read_text()) == {"eval_loss": 1.0}
