"""`python -m trainer_core push`, and what a killed run leaves to it."""

import os
import signal
import subprocess
import sys

import pytest

from trainer_core.__main__ import main
from trainer_core_hub_push.entries import Push
from trainer_core_hub_push.outbox import Outbox

REPO = "user/first"


@pytest.fixture
def logged_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path / "run")


@pytest.fixture
def queue(outbox, tmp_path):
    def add(message):
        (tmp_path / message).write_text(message)
        return outbox.add(Push(REPO, message), {f"{message}.txt": tmp_path / message})

    return add


def push(outbox, *more):
    return main(["push", str(outbox.folder.parent), "--backoff", "0.01", *more])


@pytest.mark.usefixtures("logged_in")
def test_what_is_left_is_pushed_and_said(hub, outbox, queue, capsys):
    queue("one")
    queue("two")
    assert push(outbox) == 0
    commits = hub.repo(REPO).commits()
    assert capsys.readouterr().out.splitlines() == [
        f"pushed 'one' to {hub.endpoint}/{REPO}/commit/{commits[1].id}",
        f"pushed 'two' to {hub.endpoint}/{REPO}/commit/{commits[0].id}",
    ]
    assert outbox.entries() == []
    assert push(outbox) == 0
    assert capsys.readouterr().out == f"{outbox.folder.parent}: nothing is left to push.\n"


@pytest.mark.usefixtures("logged_in")
def test_what_fails_stays_and_is_said(hub, outbox, queue, capsys):
    entry = queue("one")
    hub.fault("POST", r"/commit/", 503, times=None)
    assert push(outbox, "--retries", "1") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"python -m trainer_core push: 1 left in {outbox.folder}: HfHubHTTPError 503")
    assert told.endswith(". Run it again.")
    assert outbox.entries() == [entry]
    assert hub.count("POST", r"/commit/") == 2


@pytest.mark.usefixtures("logged_in")
def test_a_hub_that_asks_to_wait_too_long_is_not_waited_for(hub, outbox, queue, capsys):
    entry = queue("one")
    hub.fault("POST", r"/commit/", 429, times=None, retry_after=7200)
    assert push(outbox) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == (
        f"python -m trainer_core push: 1 left in {outbox.folder}: HfHubHTTPError 429: This error was asked for; "
        "the Hub asks to wait 2 h, longer than the 15 min that are waited at most. Run it again."
    )
    assert outbox.entries() == [entry]
    assert hub.count("POST", r"/commit/") == 1


def test_a_malformed_token_is_told(hub, outbox, queue, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mar ked")
    queue("one")
    assert push(outbox) == 1
    assert capsys.readouterr().err == (
        "python -m trainer_core push: hub_token: holds characters that no token has, got that of HF_TOKEN or the "
        "login. Copy it again, without blanks, line breaks and letters beyond ASCII.\n"
    )
    assert hub.requests == []


def test_without_a_token_nothing_is_tried(hub, outbox, queue, capsys):
    queue("one")
    assert push(outbox) == 1
    assert capsys.readouterr().err == (
        "python -m trainer_core push: there is no token. Set the variable HF_TOKEN, or log in with `hf auth login`.\n"
    )
    assert hub.requests == []


def test_a_folder_that_is_not_there_is_said(tmp_path, capsys):
    assert main(["push", str(tmp_path / "gone")]) == 1
    assert capsys.readouterr().err == (
        f"python -m trainer_core push: output_dir: is no folder, got {str(tmp_path / 'gone')!r}. Name that of a run.\n"
    )


@pytest.mark.usefixtures("logged_in")
@pytest.mark.parametrize("step", ["entries", "lock"])
def test_a_folder_that_the_user_may_not_use_is_said(hub, outbox, queue, capsys, monkeypatch, step):
    def refuse(self):
        raise PermissionError(13, "Permission denied", "run/.outbox")

    queue("one")
    monkeypatch.setattr(Outbox, step, refuse)
    assert push(outbox) == 1
    assert capsys.readouterr().err == (
        "python -m trainer_core push: output_dir: cannot be used, got [Errno 13] Permission denied: 'run/.outbox'. "
        "Let this user read and write it.\n"
    )
    assert hub.requests == []


def test_a_token_that_cannot_be_read_is_said(hub, outbox, queue, capsys, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied", "hf/token")

    queue("one")
    monkeypatch.setattr("trainer_core_hub_push.repository.secret_of", refuse)
    assert push(outbox) == 1
    assert capsys.readouterr().err == (
        "python -m trainer_core push: the token: cannot be read, got [Errno 13] Permission denied: 'hf/token'. "
        "Let this user read it, or set the variable HF_TOKEN.\n"
    )


def test_a_link_in_place_of_the_outbox_is_said(outbox, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    outbox.folder.parent.mkdir()
    outbox.folder.symlink_to(tmp_path / "mine")
    assert push(outbox) == 1
    assert capsys.readouterr().err == (
        f"python -m trainer_core push: {outbox.folder}: is a link, and no outbox of trainer_core is one. "
        "Put the folder itself there, or remove the link.\n"
    )


def test_what_cannot_be_printed_is_no_fault_of_the_folder(outbox, monkeypatch):
    def refuse(*args, file=sys.stdout):
        if file is not sys.stderr:
            raise BrokenPipeError(32, "Broken pipe")

    outbox.folder.parent.mkdir()
    monkeypatch.setattr("builtins.print", refuse)
    with pytest.raises(BrokenPipeError):
        push(outbox)


@pytest.mark.usefixtures("logged_in")
def test_an_outbox_that_is_in_use_is_left_alone(hub, outbox, queue, capsys, monkeypatch):
    monkeypatch.setattr("trainer_core_hub_push.command.OWNER_SECONDS", 0.3)
    queue("one")
    with outbox.lock():
        assert push(outbox) == 1
    assert capsys.readouterr().err == (
        f"python -m trainer_core push: {outbox.folder}: is in use by process {os.getpid()}. Let it finish, or end it.\n"
    )
    assert hub.requests == []


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--retries", "-1"], "must be a whole number from 0, got '-1'"),
        (["--retries", "two"], "must be a whole number from 0, got 'two'"),
        (["--backoff", "0"], "must be a number of seconds above 0, got '0'"),
        (["--backoff", "inf"], "must be a number of seconds above 0, got 'inf'"),
        (["--backoff", "soon"], "must be a number of seconds above 0, got 'soon'"),
    ],
)
def test_misuse_is_told(outbox, capsys, option, told):
    with pytest.raises(SystemExit) as ended:
        main(["push", str(outbox.folder.parent), *option])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_there_is_no_way_to_pass_a_token_on_the_command_line(outbox, capsys):
    with pytest.raises(SystemExit):
        main(["push", str(outbox.folder.parent), "--token", "hf_marked"])


RUN = """
import sys, torch
from pathlib import Path
from trainer_core.testing import only
from trainer_core.testing.tiny import tiny_trainer
torch.set_num_threads(1)
with only("hub_push", "checkpointing"):
    options = {"push_to_hub": True, "hub_strategy": "checkpoint", "hub_always_push": True, "save_steps": 8}
    options["hub_push.backoff_seconds"] = 30.0
    tiny_trainer(Path(sys.argv[1]), options=options).train()
"""


def started(hub, *command):
    environment = {**os.environ, **hub.environment, "HF_TOKEN": "hf_writer", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_command_loads_no_torch(hub, tmp_path):
    (tmp_path / "run").mkdir()
    code = "import sys; from trainer_core.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    out, _ = started(hub, "-c", code, "push", str(tmp_path / "run")).communicate(timeout=200)
    assert out.splitlines() == [f"{tmp_path / 'run'}: nothing is left to push.", "0 False"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["delay", "lost"])
def test_what_a_killed_run_left_is_completed_by_the_command_and_nothing_twice(hub, make, tmp_path, wait_until, kind):
    """Killed in the middle of a commit: one that the Hub has not made yet, and one that it has."""
    hub.fault("POST", r"/commit/", kind, at=2, seconds=6 if kind == "delay" else 0)
    run = started(hub, "-c", RUN, str(tmp_path / "first"))
    wait_until(lambda: hub.count("POST", r"/commit/") >= 2)
    if kind == "lost":
        wait_until(lambda: len(hub.repo(REPO).commits()) >= 3)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    outbox = Outbox(tmp_path / "first")
    waiting = [entry.push.message for entry in outbox.entries()]
    assert "Training in progress, step 8, checkpoint" in waiting
    pushing = started(hub, "-m", "trainer_core", "push", str(tmp_path / "first"))
    out, err = pushing.communicate(timeout=200)
    assert (pushing.returncode, err) == (0, "")
    assert out.splitlines() != []
    assert outbox.entries() == []
    titles = [commit.title for commit in hub.repo(REPO).commits()]
    assert len(titles) == len(set(titles))
    (tmp_path / "first").rename(tmp_path / "lost")
    resumed = make(push_to_hub=False)
    resumed.train(resume_from_checkpoint=f"{REPO}/last-checkpoint")  # every file of it is checked
    assert resumed.state.global_step == 24


@pytest.mark.usefixtures("logged_in")
def test_a_run_goes_on_from_the_checkpoint_that_it_pushed(hub, make, tmp_path):
    """Cut, its folder lost, pulled again: it ends where one that nobody cut ends."""
    import torch

    from trainer_core import Signal

    class Cut:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 10:
                trainer.request(Signal.SAVE, by="cut", why="the test says so")
                trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)

    whole = make(push_to_hub=False)
    whole.train()
    (tmp_path / "first").rename(tmp_path / "whole")
    make(Cut(), hub_strategy="checkpoint").train()
    (tmp_path / "first").rename(tmp_path / "lost")
    resumed = make(hub_strategy="checkpoint")
    resumed.train(resume_from_checkpoint=REPO)
    assert resumed.state.global_step == 24
    assert resumed.resumed_from.is_relative_to(tmp_path / "first" / ".pulled")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
