"""A save that fails leaves what was there, and says which file, why, and where to go on."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from trainer_core import CheckpointError
from trainer_core_checkpointing import folder
from trainer_core_checkpointing.manifest import verify

ALONE = ["console", "logging"]  # the second flushes a file of its own


class Breaking:
    """Lets the k-th call of `os.fsync` in the save of update 12 fail."""

    def __init__(self, monkeypatch, which, number=errno.ENOSPC):
        self.left, self.on, self.number = which, False, number
        self.real = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def on_phase(self, trainer, phase):
        self.on = phase.name == "SAVE" and trainer.state.global_step == 12

    def fsync(self, descriptor):
        if self.on:
            self.left -= 1
            if self.left < 0:
                self.on = False
                raise OSError(self.number, os.strerror(self.number))
        self.real(descriptor)


def names(output_dir):
    return sorted(path.name for path in output_dir.iterdir() if "checkpoint" in path.name)


@pytest.mark.parametrize("which", range(11))
def test_a_full_disk_at_any_flush_leaves_the_last_checkpoint_whole(which, small, tmp_path, monkeypatch):
    breaking = Breaking(monkeypatch, which)
    trainer = small.trainer(tmp_path, breaking, save_steps=6, block_plugins=ALONE)
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'checkpoint-12'}: could not be written, ")
    assert f": No space left on device. The newest good checkpoint is {tmp_path}/checkpoint-" in text
    whole = [path for path, _ in folder.complete(tmp_path)]
    assert names(tmp_path) == sorted(path.name for path in whole)  # no staging folder is left
    for path in whole:
        verify(path)
    again = small.trainer(tmp_path, save_steps=6)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 18


def test_every_flush_of_a_save_was_broken_above(small, tmp_path, monkeypatch):
    breaking = Breaking(monkeypatch, 11)
    small.trainer(tmp_path, breaking, save_steps=6, block_plugins=ALONE).train()
    assert breaking.left == 0


def test_a_real_limit_of_the_file_size_is_reported(small, tmp_path):
    class Limiting:
        def on_phase(self, trainer, phase):
            if phase.name == "SAVE" and trainer.state.global_step == 12:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = small.trainer(tmp_path, Limiting(), save_steps=6)
    try:
        with pytest.raises(CheckpointError, match=r"could not be written, rank-00000\.json: File too large"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["checkpoint-6"]


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
    assert calls[-4:] == [("flush", staging), ("rename", target), ("flush", str(tmp_path)), ("announced", target)]
    assert calls[-5] == ("flush", f"{staging}/manifest.json")
