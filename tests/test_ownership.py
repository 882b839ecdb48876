"""Two runs in one folder at a time are refused; one that was killed owns nothing."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from trainer_core import OwnershipError, SettingsError, Trainer, ownership

HOLDER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from trainer_core.ownership import owned
with owned(Path(sys.argv[1]), SimpleNamespace(is_main=True, from_main=lambda value: value)):
    print("owns", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the folder `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "owns\n"
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_with_the_owners_process_host_and_time(make_trainer, holder, tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "HANDOVER_SECONDS", 0.1)
    trainer = make_trainer()
    with pytest.raises(OwnershipError) as caught:
        trainer.train()
    since = json.loads((tmp_path / "run" / ".owner.json").read_text())["since"]
    assert str(caught.value) == (
        f"output_dir: another run owns it, got '{tmp_path / 'run'}' "
        f"(process {holder.pid} on {socket.gethostname()} since {since}). Wait for it, or use another folder."
    )
    assert not trainer.is_in_train
    assert not (tmp_path / "run" / "journal.jsonl").exists()


FORKING = HOLDER.replace('print("owns"', 'import os\n    if os.fork() == 0: time.sleep(60)\n    print("owns"')


@pytest.fixture
def forking(monkeypatch):
    """The other process has a child that outlives it, as a worker of a dataloader may for a while."""
    monkeypatch.setattr(sys.modules[__name__], "HOLDER", FORKING)


@pytest.mark.parametrize("kind", ["alone", "forking"])
def test_an_owner_that_was_killed_owns_nothing(make_trainer, request, kind):
    if kind == "forking":
        request.getfixturevalue("forking")
    holder = request.getfixturevalue("holder")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    trainer = make_trainer()
    trainer.train()
    assert trainer.outcome == "completed"


def test_a_run_waits_for_one_that_is_just_ending(make_trainer, holder):
    trainer = make_trainer()
    ending = threading.Timer(0.3, holder.kill)
    ending.start()
    trainer.train()
    assert (trainer.outcome, ending.is_alive()) == ("completed", False)


def test_the_folder_is_given_back_when_a_run_ends_and_when_it_fails(make_trainer):
    make_trainer().train()

    class Failing(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        make_trainer(Failing).train()
    again = make_trainer()
    again.train()
    assert again.outcome == "completed"


def test_a_folder_that_cannot_be_written_is_refused_before_training(make_trainer, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(SettingsError, match="output_dir: cannot be written to, got "):
        make_trainer().train()


@pytest.mark.parametrize("name", [".owner.json", "journal.jsonl"])
@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_a_link_or_pipe_in_place_of_a_file_of_ours_is_refused_and_not_written_to(name, kind, make_trainer, tmp_path):
    (tmp_path / "run").mkdir()
    if kind == "a link":
        (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(SettingsError, match="output_dir: cannot be written to, got "):
        make_trainer().train()
    assert not (tmp_path / "outside").exists()


def test_a_file_that_does_not_say_who_owns_it_is_said(tmp_path):
    (tmp_path / ".owner.json").write_text("{")
    assert ownership._owner(tmp_path / ".owner.json") == "it does not say who it is"


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_a_disk_that_cannot_hold_the_owners_name_is_told_before_training(make_trainer, tmp_path, monkeypatch, call):
    def failing(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(SettingsError) as caught:
        make_trainer().train()
    monkeypatch.undo()
    problem = f"cannot be written to, got '{tmp_path / 'run'}' ([Errno 28] No space left on device)"
    assert caught.value.problems == [f"output_dir: {problem}. Name a folder that is there or can be made."]
    trainer = make_trainer()
    trainer.train()
    assert trainer.outcome == "completed"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_the_run_goes_on(code, make_trainer, monkeypatch, caplog):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ownership.fcntl, "flock", fail)
    trainer = make_trainer()
    trainer.train()
    assert trainer.outcome == "completed"
    why = f"[Errno {code}] {os.strerror(code)}"
    told = f"output_dir: its file system has no locks, {why}. See to it that no other run uses it."
    assert [record.getMessage() for record in caplog.records] == [told]


def test_a_lock_that_fails_for_another_reason_is_no_lock(make_trainer, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ownership.fcntl, "flock", fail)
    with pytest.raises(SettingsError, match=r"cannot be written to, got .* \(\[Errno 5\] Input/output error"):
        make_trainer().train()
