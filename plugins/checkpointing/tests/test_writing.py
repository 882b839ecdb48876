"""A save that fails leaves what was there and nothing of its own; the run goes on or ends, as the policy says."""

from __future__ import annotations

import errno
import logging
import os
import resource
from concurrent.futures import wait

import pytest

from trainer_core import CheckpointError, journal_records
from trainer_core_checkpointing import files, folder
from trainer_core_checkpointing.manifest import verify

NUM_CALLS = 29
"""Calls that change the disk in one save."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)


def names(output_dir):
    return sorted(path.name for path in output_dir.iterdir() if "checkpoint" in path.name)


def whole(output_dir):
    """Gives the names of the checkpoints, each of which is whole."""
    found = [path for path, _ in folder.complete(output_dir)]
    for path in found:
        verify(path)
    return sorted(path.name for path in found)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the run ends with that no disk disturbs; made once."""
    return {"output_dir": tmp_path_factory.mktemp("undisturbed")}


@pytest.mark.parametrize("is_behind", [False, True])
@pytest.mark.parametrize("which", range(NUM_CALLS))
def test_an_error_of_any_call_costs_one_save_and_nothing_else(
    which, is_behind, small, disk, tmp_path, undisturbed, assert_same
):
    if "outcome" not in undisturbed:
        trainer = small.trainer(undisturbed["output_dir"], save_steps=6)
        trainer.train()
        undisturbed["outcome"] = small.outcome(trainer)
    faulty = disk(12, which, ERRORS[(which + is_behind) % 3])
    trainer = small.trainer(tmp_path, save_steps=6, checkpoint_async=is_behind)
    trainer.train()
    assert len(faulty.made) > which
    assert_same(small.outcome(trainer), undisturbed["outcome"])
    failed = list(journal_records(tmp_path / "journal.jsonl", "save_failed"))
    assert [(line["of_step"], line["policy"]) for line in failed] == [(12, "retry")]
    assert os.strerror(ERRORS[(which + is_behind) % 3]) in failed[0]["why"]
    assert names(tmp_path) == whole(tmp_path) == ["checkpoint-18", "checkpoint-6"]


@pytest.mark.parametrize("is_behind", [False, True])
def test_every_call_of_a_save_was_disturbed_above(is_behind, small, disk, tmp_path):
    faulty = disk(12, 10**6)
    small.trainer(tmp_path, save_steps=6, checkpoint_async=is_behind).train()
    assert len(faulty.made) == NUM_CALLS


def test_a_disk_that_stays_full_is_said_and_what_it_left_is_cleared_by_the_next_run(small, disk, tmp_path, caplog):
    disk(12, 5, errno.EROFS, lasts=True)
    trainer = small.trainer(tmp_path, save_steps=6)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    staging = tmp_path / folder.staging_name(12)
    assert f"{tmp_path / 'checkpoint-12'}: could not be written, rank-00000.json: Read-only file system" in caplog.text
    assert "could not be deleted" in caplog.text
    assert names(tmp_path) == [staging.name, "checkpoint-18", "checkpoint-6"]
    small.trainer(tmp_path, save_steps=6).train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-18", "checkpoint-6"]


def test_a_real_limit_of_the_file_size_ends_the_run_at_its_last_save(small, tmp_path, caplog):
    class Limiting:
        def on_phase(self, trainer, phase):
            if phase.name == "SAVE" and trainer.state.global_step == 12:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = small.trainer(tmp_path, Limiting(), save_steps=6, block_plugins=["console", "logging"])
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-18: could not be written, .*: File too large") as caught:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Free space or repair the disk, then resume from there." in str(caught.value)
    assert f"The newest good checkpoint is {tmp_path}/checkpoint-6." in str(caught.value)
    assert "checkpoint-12: could not be written, " in caplog.text
    assert names(tmp_path) == whole(tmp_path) == ["checkpoint-6"]
    assert (trainer.outcome, trainer.state.last_save_step) == ("failed", 6)


# Policy -----------------------------------------------------------------------------------------------------------


class Waiting:
    """Gives a save that is behind the training the time of an update."""

    before = ("checkpointing",)

    def on_step_end(self, trainer):
        flight = trainer.bus.members["checkpointing"].plugin._saver.flight
        if flight is not None:
            wait([flight.end])


class Announced:
    """Notes what is announced."""

    def __init__(self):
        self.saves = []

    def on_save(self, trainer, checkpoint):
        self.saves.append((checkpoint.name, trainer.state.global_step))


@pytest.mark.parametrize("is_behind", [False, True])
def test_stop_ends_the_run_with_the_first_error(is_behind, small, disk, tmp_path):
    announced = Announced()
    disk(12, 3, errno.EIO)
    options = {"save_steps": 6, "on_save_error": "stop", "checkpoint_async": is_behind}
    trainer = small.trainer(tmp_path, announced, **options)
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    assert str(caught.value) == (
        f"{tmp_path / 'checkpoint-12'}: could not be written, model.safetensors: Input/output error. "
        f"The newest good checkpoint is {tmp_path / 'checkpoint-6'}. "
        f"Free space or repair the disk, then resume from there."
    )
    assert ("checkpoint-12", 12) not in announced.saves
    assert whole(tmp_path)[-1] == "checkpoint-6"
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("policy", ["retry", "prune", "stop"])
def test_the_last_save_of_a_run_ends_it_with_the_error_in_any_case(policy, small, disk, tmp_path):
    disk(18, 2, errno.EIO)
    trainer = small.trainer(tmp_path, save_steps=6, on_save_error=policy)
    with pytest.raises(CheckpointError, match=r"checkpoint-18: could not be written, model\.safetensors: Input"):
        trainer.train()
    assert names(tmp_path) == whole(tmp_path) == ["checkpoint-12", "checkpoint-6"]


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_failed_save_is_not_announced_claimed_or_called_the_best(is_behind, small, disk, tmp_path, caplog):
    announced = Announced()
    disk(12, 4)
    options = {"save_steps": 6, "eval_strategy": "steps", "eval_steps": 12, "load_best_model_at_end": True}
    seen = []

    class Looking:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 14:
                seen.append((trainer.state.last_save_step, trainer.state.best_model_checkpoint))

    trainer = small.trainer(
        tmp_path, announced, Waiting(), Looking(), max_steps=18, checkpoint_async=is_behind, **options
    )
    trainer.compute_metrics = lambda prediction: {"score": -trainer.state.global_step}
    trainer.args = trainer.args.replace(metric_for_best_model="score", greater_is_better=True)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert announced.saves == [("checkpoint-6", 6), ("checkpoint-18", 18)]
    assert seen == [(6, None)]
    assert (trainer.state.best_global_step, trainer.state.best_model_checkpoint) == (12, None)
    assert trainer.loaded_best_from is None
    assert "load_best_model_at_end: the model keeps the weights of the last step" in caplog.text


def test_failed_saves_are_counted_in_the_closing_notes(small, disk, tmp_path):
    disk(12, 3, errno.EIO)
    trainer = small.trainer(tmp_path, save_steps=6)
    trainer.train()
    told = "1 of 3 failed, the last of step 12: could not be written, model.safetensors: Input/output error"
    assert list(trainer.bus.members["checkpointing"].plugin.closing_notes()) == [("saves", told)]


# Space ------------------------------------------------------------------------------------------------------------


class Small(files.Calls):
    """A disk that holds so many checkpoints."""

    def __init__(self, output_dir, checkpoints):
        self.output_dir, self.checkpoints = output_dir, checkpoints

    def free_bytes(self, path):
        return (self.checkpoints - len(list(self.output_dir.glob("checkpoint-*")))) * 100_000


def test_the_space_is_checked_before_a_save_begins(small, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "calls", Small(tmp_path, 1))
    trainer = small.trainer(tmp_path, save_steps=9)
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    needed = sum(file.stat().st_size for file in (tmp_path / "checkpoint-9").glob("[!m]*"))
    needed += (tmp_path / "checkpoint-9" / "model.safetensors").stat().st_size
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'checkpoint-18'}: needs ")
    assert f"kB, and 0 B are free in {tmp_path}. The newest good checkpoint is {tmp_path}/checkpoint-9." in said
    stated = float(said.split("needs ")[1].split(" kB")[0]) * 1000 - 64 * 1024
    assert abs(stated - needed) < 1000  # rows are more by then, and the number is rounded
    assert names(tmp_path) == ["checkpoint-9"]


@pytest.mark.parametrize("is_behind", [False, True])
def test_prune_makes_space_and_saves_once_more_at_once(is_behind, small, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "calls", Small(tmp_path, 2))
    options = {"save_steps": 3, "on_save_error": "prune", "checkpoint_async": is_behind}
    trainer = small.trainer(tmp_path, **options)
    trainer.train()
    assert names(tmp_path) == whole(tmp_path) == ["checkpoint-15", "checkpoint-18"]
    pruned = [line["names"] for line in journal_records(tmp_path / "journal.jsonl", "checkpoints_pruned")]
    assert pruned == [["checkpoint-3"], ["checkpoint-6"], ["checkpoint-9"], ["checkpoint-12"]]
    assert "Deleted to make space: checkpoint-3." in caplog.text
    assert not list(journal_records(tmp_path / "journal.jsonl", "save_failed"))


def test_prune_after_a_write_that_failed_behind_the_training_saves_at_the_next_boundary(small, disk, tmp_path):
    disk(12, 8, errno.ENOSPC)
    trainer = small.trainer(tmp_path, save_steps=4, on_save_error="prune", checkpoint_async=True)
    trainer.add_callback(Waiting())
    trainer.train()
    (failed,) = journal_records(tmp_path / "journal.jsonl", "save_failed")
    assert (failed["of_step"], failed["step"]) == (12, 13)
    kept = whole(tmp_path)
    assert "checkpoint-4" not in kept
    assert sorted(kept) == ["checkpoint-13", "checkpoint-16", "checkpoint-18", "checkpoint-8"]


def test_prune_deletes_nothing_where_it_cannot_help(small, disk, tmp_path):
    disk(12, 8, errno.EIO)
    trainer = small.trainer(tmp_path, save_steps=4, on_save_error="prune")
    trainer.train()
    assert names(tmp_path) == ["checkpoint-16", "checkpoint-18", "checkpoint-4", "checkpoint-8"]


# Errors of others -------------------------------------------------------------------------------------------------


def test_an_error_of_a_plugins_state_is_raised_as_it_is(small, tmp_path):
    class Failing:
        def state_dict(self):
            raise ZeroDivisionError("mine")

        def load_state_dict(self, state):
            pass

        def on_step_end(self):
            pass

    with pytest.raises(ZeroDivisionError, match="mine"):
        small.trainer(tmp_path, Failing(), save_steps=6).train()
    assert names(tmp_path) == []


def test_a_state_that_cannot_be_saved_is_named(small, tmp_path):
    class Strange:
        def state_dict(self):
            return {"seen": {1, 2}}

        def load_state_dict(self, state):
            pass

        def on_step_end(self):
            pass

    with pytest.raises(CheckpointError, match=r"plugins\.Strange\.seen: cannot be saved without pickling, got set"):
        small.trainer(tmp_path, Strange(), save_steps=6).train()
    assert names(tmp_path) == []


def test_a_checkpoint_is_durable_when_it_is_announced(small, tmp_path, monkeypatch):
    """The output folder is flushed after the rename, and nothing is written or renamed after that."""
    calls = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        calls.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def rename(source, target):
        calls.append(("rename", str(target)))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)

    class Announced:
        def on_save(self, trainer, checkpoint):
            calls.append(("announced", str(checkpoint)))

    small.trainer(tmp_path, Announced(), save_steps=18).train()
    staging = str(tmp_path / folder.staging_name(18))
    flushed = {place for what, place in calls if what == "flush"}
    files = ["manifest.json", "model.safetensors", "state.json", "state.safetensors", "rank-00000.json"]
    assert flushed >= {f"{staging}/{name}" for name in files} | {staging}
    target = str(tmp_path / "checkpoint-18")
    calls = calls[: calls.index(("announced", target)) + 1]
    assert calls[-4:] == [("flush", staging), ("rename", target), ("flush", str(tmp_path)), ("announced", target)]
    assert calls[-5] == ("flush", f"{staging}/manifest.json")
