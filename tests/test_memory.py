"""How much memory the stages of a trainer take."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.test_evaluate import untimed
from tests.toys import Classifier, arguments, named_rows, pairs, trainer_for
from trainer_core import memory
from trainer_core.memory import MemoryMeter

ROOT = Path(__file__).parents[1]
MIB = 2**20
linux = pytest.mark.skipif(not memory.STATUS.is_file(), reason="needs /proc")


def keys(stage, device="cpu"):
    return {f"{stage}_mem_{device}_alloc_delta", f"{stage}_mem_{device}_peaked_delta"}


def memory_of(metrics):
    return {name for name in metrics if "_mem_" in name}


def observed(folder, **options):
    given = {"eval_dataset": named_rows(5)}
    return trainer_for(folder, Classifier(), pairs(8), given=given, skip_memory_metrics=False, **options)


@linux
def test_the_first_stage_tells_of_the_constructor_too(tmp_path):
    trainer = observed(tmp_path)
    init = {"before_init_mem_cpu", *keys("init")}
    metrics = trainer.train().metrics
    assert memory_of(metrics) == init | keys("train")
    assert memory_of(trainer.state.log_history[-1]) == init | keys("train")
    assert memory_of(trainer.evaluate()) == keys("eval")
    assert memory_of(trainer.predict(named_rows(3)).metrics) == keys("test")
    assert all(isinstance(metrics[name], int) for name in memory_of(metrics))
    assert metrics["before_init_mem_cpu"] > 50 * MIB


@linux
def test_an_evaluation_in_training_is_a_part_of_it(tmp_path):
    trainer = observed(tmp_path, eval_strategy="epoch")
    trainer.train()
    first, *_, last = trainer.state.log_history
    assert "eval_loss" in first
    assert memory_of(first) == set()
    assert memory_of(last) == {"before_init_mem_cpu", *keys("init"), *keys("train")}


@linux
def test_a_plan_takes_nothing_of_what_is_told_later(tmp_path):
    options = {"eval_strategy": "epoch", "metric_for_best_model": "loss"}
    trainer = observed(tmp_path, **options)
    trainer.plan()
    assert memory_of(trainer.train().metrics) >= keys("init")


def test_nothing_is_read_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(MemoryMeter, "_usage", None)
    trainer = trainer_for(tmp_path, Classifier(), pairs(8), given={"eval_dataset": named_rows(5)})
    assert memory_of(trainer.train().metrics) == set()
    assert untimed(trainer.evaluate()).keys() == {"eval_loss"}


MEASURED = """
    import json, torch
    from tests.toys import Classifier, arguments
    from trainer_core.memory import MemoryMeter

    def touch(mebibytes):
        return torch.ones(mebibytes * 2**18)

    meter = MemoryMeter(arguments("unused", skip_memory_metrics=False))
    meter.end_init()
    meter.take("nothing")
    meter.begin()
    kept = touch(64)
    told = meter.take("keeping")
    meter.begin()
    del kept
    told |= meter.take("freeing")
    meter.begin()
    touch(256)
    told |= meter.take("peaking")
    meter.begin()
    touch(128)
    told |= meter.take("lower")
    print(json.dumps({name: round(value / 2**20) for name, value in told.items()}))
"""


@linux
def test_what_a_stage_keeps_gives_back_and_needs_for_a_while_is_measured():
    command = [sys.executable, "-c", textwrap.dedent(MEASURED)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    told = json.loads(done.stdout)
    near = {name: value for name, value in told.items() if abs(value) > 8}
    assert near == {
        "keeping_mem_cpu_alloc_delta": pytest.approx(64, abs=8),
        "freeing_mem_cpu_alloc_delta": pytest.approx(-64, abs=8),
        "peaking_mem_cpu_peaked_delta": pytest.approx(256, abs=8),
    }  # the last stage stayed below the mark of the one before it


def test_without_proc_and_without_a_device_there_are_no_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "no" / "status")
    assert memory_of(observed(tmp_path).train().metrics) == set()


def test_figures_of_a_device_are_those_of_torchs_allocator(tmp_path, monkeypatch):
    """No device is needed: torch's three functions are all that is asked."""
    monkeypatch.setattr(memory, "STATUS", tmp_path / "no" / "status")
    held = {"now": 10, "peak": 10}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(peak=held["now"]))
    meter = MemoryMeter(arguments(tmp_path, skip_memory_metrics=False))
    held.update(now=15, peak=40)
    meter.end_init()
    meter.begin()
    held.update(now=12, peak=13)
    assert meter.take("train") == {
        "before_init_mem_gpu": 10,
        "init_mem_gpu_alloc_delta": 5,
        "init_mem_gpu_peaked_delta": 25,
        "train_mem_gpu_alloc_delta": -3,
        "train_mem_gpu_peaked_delta": 1,
    }
    assert MemoryMeter(arguments(tmp_path, skip_memory_metrics=False, use_cpu=True)).take("eval") == {}
