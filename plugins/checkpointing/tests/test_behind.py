"""Saves that are written while the training goes on: the same bytes, announced when they are durable."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import wait
from threading import Event

import pytest
import torch

from trainer_core import Signal
from trainer_core_checkpointing import disk as disk_module
from trainer_core_checkpointing import files, folder, saving
from trainer_core_checkpointing.content import Content, HostMemory, file_of_tensors
from trainer_core_checkpointing.manifest import verify

STEPS = {"save_steps": 6}


def flight_of(trainer):
    return trainer.bus.members["checkpointing"].plugin._saver.flight


class Noting:
    """Notes each announcement with the update at which the run was by then."""

    def __init__(self):
        self.saves, self.done = [], 0

    def on_step_begin(self, trainer):
        self.done = trainer.state.global_step

    def on_save(self, trainer, checkpoint):
        verify(checkpoint)
        self.saves.append((checkpoint.name, trainer.state.global_step, trainer.state.epoch, self.done))


class Held(files.Calls):
    """A disk that is busy with the save of one update until it is let go."""

    def __init__(self, step):
        self.staging, self.gate, self.is_reached = f".tmp-checkpoint-{step}-", Event(), Event()

    def create(self, path):
        if self.staging in str(path):
            self.is_reached.set()
            assert self.gate.wait(20)
        return super().create(path)


@pytest.fixture
def held(monkeypatch):
    def put(step):
        disk = Held(step)
        monkeypatch.setattr(files, "calls", disk)
        return disk

    return put


class LettingGo:
    """Lets the disk go on at an update, and waits for it there."""

    before = ("checkpointing",)

    def __init__(self, disk, step):
        self.disk, self.step = disk, step

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.step:
            self.disk.gate.set()
            wait([flight_of(trainer).end])


def test_the_training_goes_on_and_the_checkpoint_is_announced_at_the_boundary_after_it(small, held, tmp_path):
    disk, noting = held(6), Noting()
    trainer = small.trainer(tmp_path, noting, LettingGo(disk, 10), checkpoint_async=True, **STEPS)
    trainer.train()
    assert noting.saves[0] == ("checkpoint-6", 6, 1.0, 9)
    assert [(name, step) for name, step, _, _ in noting.saves[1:]] == [("checkpoint-12", 12), ("checkpoint-18", 18)]
    assert (trainer.state.global_step, trainer.state.epoch) == (18, 3.0)


def test_what_is_written_behind_is_what_is_written_at_once(small, held, tmp_path, assert_same):
    """The disk holds the save of update 6 back until update 10: what the training did meanwhile is not in it."""
    at_once = small.trainer(tmp_path / "at_once", checkpoint_async=False, **STEPS)
    at_once.train()
    behind = small.trainer(tmp_path / "behind", LettingGo(held(6), 10), checkpoint_async=True, **STEPS)
    behind.train()
    assert_same(small.outcome(behind), small.outcome(at_once))
    for step in (6, 12, 18):
        one, other = tmp_path / "at_once" / f"checkpoint-{step}", tmp_path / "behind" / f"checkpoint-{step}"
        assert verify(one).files.keys() == verify(other).files.keys()
        for name in ("model.safetensors", "state.safetensors", "rank-00000.json", "rank-00000.safetensors"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
        counters = [json.loads((path / "state.json").read_bytes())["counters"] for path in (one, other)]
        assert counters[0] == counters[1]


@pytest.mark.parametrize("step", [6, 12])
def test_a_run_resumed_from_a_save_behind_the_training_ends_with_the_same_bits(step, small, tmp_path, assert_same):
    trainer = small.trainer(tmp_path, checkpoint_async=True, **STEPS)
    trainer.train()
    again = small.trainer(tmp_path / "again", checkpoint_async=True, **STEPS)
    again.train(resume_from_checkpoint=tmp_path / f"checkpoint-{step}")
    assert_same(small.outcome(again), small.outcome(trainer))


def test_a_second_save_waits_for_the_first_and_that_is_said_once(small, held, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(saving, "_FELT_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        small.trainer(tmp_path, checkpoint_async=True, save_steps=1).train()
    said = [record.getMessage() for record in caplog.records if "training waited" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("checkpoint_async: a save was due while the one of step 1 was still being written; ")
    assert len(folder.complete(tmp_path)) == 18


def test_every_save_is_announced_before_the_next_one_rotates_it_away(small, tmp_path):
    noting = Noting()
    small.trainer(tmp_path, noting, save_steps=1, save_total_limit=1, checkpoint_async=True).train()
    assert [name for name, *_ in noting.saves] == [f"checkpoint-{step}" for step in range(1, 19)]


def test_a_run_that_is_cut_short_is_saved_when_train_returns(small, held, tmp_path):
    disk, noting = held(6), Noting()

    class Cutting:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 8:
                trainer.request(Signal.SAVE, by="cut", why="the test says so")
                trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)
                disk.gate.set()

    small.trainer(tmp_path, noting, Cutting(), checkpoint_async=True, **STEPS).train()
    assert [(name, step) for name, step, _, _ in noting.saves] == [("checkpoint-6", 6), ("checkpoint-8", 8)]
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_end_of_a_run_waits_for_a_save_that_nothing_follows(small, held, tmp_path):
    disk, noting = held(16), Noting()

    class Asking:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 16:
                trainer.request(Signal.SAVE, by="asking", why="of interest")

        def on_epoch_end(self, trainer):
            if trainer.state.global_step == 18:
                disk.gate.set()

    trainer = small.trainer(tmp_path, noting, Asking(), checkpoint_async=True, save_strategy="no")
    trainer.train()
    assert [(name, step, done) for name, step, _, done in noting.saves] == [("checkpoint-16", 16, 17)]
    assert (trainer.outcome, trainer.state.last_save_step) == ("completed", 16)


def test_the_best_model_is_the_one_that_landed(small, held, tmp_path):
    disk, seen = held(8), []

    class Looking:
        def on_step_end(self, trainer):
            seen.append(trainer.state.best_model_checkpoint)

    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "no"}
    metric = {"metric_for_best_model": "score", "greater_is_better": True, "checkpoint_async": True}
    trainer = small.trainer(tmp_path, LettingGo(disk, 10), Looking(), **options, **metric)
    trainer.compute_metrics = lambda prediction: {"score": float(trainer.state.global_step == 8)}
    trainer.train()
    eight = os.path.join(trainer.args.output_dir, "checkpoint-8")
    assert seen[8:10] == [None, eight]
    assert trainer.loaded_best_from == tmp_path / "checkpoint-8"
    assert trainer.state.best_model_checkpoint == eight


def test_a_run_that_is_to_stop_at_once_gives_up_what_is_in_flight(small, held, tmp_path):
    disk = held(6)

    class Interrupting:
        before = ("checkpointing",)

        def on_step_end(self, trainer):
            if trainer.state.global_step == 8:
                assert disk.is_reached.wait(20)
                raise KeyboardInterrupt

        def on_teardown(self, trainer):
            disk.gate.set()

    with pytest.raises(KeyboardInterrupt):
        small.trainer(tmp_path, Interrupting(), checkpoint_async=True, **STEPS).train()
    assert [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name] == []


# Where it pays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "worth", "memory", "expected"),
    [
        (None, 1, 2**40, True),
        (None, 1, None, True),
        (None, 2**40, 2**40, False),
        (None, 1, 1000, False),
        (True, 2**40, 1000, True),
        (False, 1, 2**40, False),
    ],
)
def test_it_is_on_where_it_pays_and_memory_suffices(wanted, worth, memory, expected, small, tmp_path, monkeypatch):
    seen = []

    class Looking:
        def on_phase(self, trainer, phase):
            if trainer.state.global_step == 6 and phase.name != "SAVE":
                seen.append(flight_of(trainer) is not None)

        def on_step_begin(self, trainer):
            if trainer.state.global_step == 6:
                seen.append(flight_of(trainer) is not None)

    monkeypatch.setattr(saving, "WORTH_BYTES", worth)
    monkeypatch.setattr(disk_module, "available_memory", lambda: memory)
    small.trainer(tmp_path, Looking(), checkpoint_async=wanted, **STEPS).train()
    assert any(seen) is expected


def test_the_copies_are_kept_and_filled_again():
    memory, tensors = HostMemory(), {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2)}

    def content():
        return Content(1, None, None, (file_of_tensors("x", dict(tensors)),), {})

    first = memory.copy(content()).files[0].tensors
    places = {name: tensor.data_ptr() for name, tensor in first.items()}
    assert all(torch.equal(first[name], tensor) and first[name].is_contiguous() for name, tensor in tensors.items())
    tensors["a"] = tensors["a"] + 1
    second = memory.copy(content()).files[0].tensors
    assert {name: tensor.data_ptr() for name, tensor in second.items()} == places
    assert torch.equal(second["a"], tensors["a"])
    assert memory.num_bytes == 32
    del tensors["b"]
    memory.copy(content())
    assert memory.num_bytes == 24


def test_the_memory_that_is_there_is_known():
    found = disk_module.available_memory()
    assert found is None or 2**20 < found < 2**50
