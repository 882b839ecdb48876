"""The rounds find what is wrong, and the supervisor does what its plan says."""

from __future__ import annotations

import errno
import logging
import os
import signal

import pytest
import torch
from safetensors.torch import save_file

from trainer_core.testing.crash import server as fork_server
from trainer_core.testing.crash.calls import FLUSHES, RENAMES, WRITES, Call
from trainer_core.testing.crash.disk_model import Disk, contents_alone, names_alone, nothing
from trainer_core.testing.crash.rounds import Figures, Rounds
from trainer_core.testing.crash.server import Ended, Job, Server
from trainer_core.testing.crash.supervisor import Account, Plan

WATCHED = pytest.mark.usefixtures("sees_all_calls")


def write_two(folder, announce):
    folder.mkdir()
    with open(folder / "one", "wb", buffering=0) as file:
        written = file.write(b"12345678")
        written += file.write(b"abcd")
    announce("written")
    os.rename(folder / "one", folder / "two")
    return written


def write_tensors(folder, announce):
    folder.mkdir()
    torch._C.PyTorchFileWriter(str(folder / "by_c++")).write_end_of_file()
    save_file({"a": torch.ones(8)}, folder / "by_rust")


def warn(folder, announce):
    logging.getLogger("trainer_core").warning("careful")


@pytest.fixture
def start(server, tmp_path):
    def start(plan):
        return server.run(Job(f"{__name__}:write_two", tmp_path / "run", plan=plan))

    return start


@WATCHED
def test_calls_are_seen_in_their_order_with_their_bytes(start):
    ended = start(Plan(records=True))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    assert ended.account.calls == [
        Call("mkdir", (".",)),
        Call("openat", ("one",), flags=flags),
        Call("write", ("one",), b"12345678", 8, 0),
        Call("write", ("one",), b"abcd", 4, 8),
        Call("announce", data=b"written\n"),
        Call("rename", ("one", "two")),
    ]
    assert (ended.result, ended.error, ended.account.ending) == (12, "", "ended")


@WATCHED
@pytest.mark.parametrize(("action", "content"), [("kill", b"12345678"), ("kill in the middle", b"12345678ab")])
def test_a_kill_comes_before_a_call_or_after_half_of_its_bytes(start, tmp_path, action, content):
    ended = start(Plan(action, 3))
    assert (ended.account.ending, ended.result, str(ended.account.acted)) == ("killed", None, "write one 4 bytes")
    assert (tmp_path / "run" / "one").read_bytes() == content


@WATCHED
def test_a_call_that_fails_is_not_made(start, tmp_path):
    ended = start(Plan("fail", 4, errno=errno.EROFS))
    assert "OSError: [Errno 30] Read-only file system" in ended.error
    assert os.listdir(tmp_path / "run") == ["one"]


@WATCHED
def test_a_full_disk_stays_full(start, tmp_path):
    ended = start(Plan("fail", 1, errno=errno.ENOSPC, lasts=True))
    assert "No space left on device" in ended.error
    assert os.listdir(tmp_path / "run") == []


@WATCHED
def test_a_short_write_writes_half(start, tmp_path):
    assert start(Plan("shorten", 2)).result == 8
    assert (tmp_path / "run" / "two").read_bytes() == b"1234abcd"


@WATCHED
def test_compiled_libraries_are_seen(server, tmp_path):
    ended = server.run(Job(f"{__name__}:write_tensors", tmp_path / "run"))
    assert ended.error == ""
    names = {call.name for call in ended.account.calls if call.paths[-1] in ("by_c++", "by_rust")}
    written = [call.paths[0] for call in ended.account.calls if call.name in WRITES]
    assert ("by_c++" in written, len(written), "openat" in names) == (True, 2, True)
    assert [call.paths[1] for call in ended.account.calls if call.name in RENAMES] == ["by_rust"]


def test_a_warning_says_that_it_is_one_without_any_plugin(server, tmp_path):
    assert server.run(Job(f"{__name__}:warn", tmp_path / "run")).said == "WARNING trainer_core: careful\n"


def test_without_the_kernel_a_process_watches_itself(tmp_path):
    server = Server(watches="python")
    try:
        ended = server.run(Job(f"{__name__}:write_two", tmp_path / "run"))
        assert [str(call) for call in ended.account.calls] == ["mkdir .", "open one", "announce ", "rename one -> two"]
        failed = server.run(Job(f"{__name__}:write_two", tmp_path / "other", plan=Plan("fail", 2, errno=errno.EIO)))
        assert "OSError: [Errno 5] Input/output error: 'two'" in failed.error
        killed = server.run(Job(f"{__name__}:write_two", tmp_path / "third", plan=Plan("kill", 1)))
        assert (killed.result, killed.account.ending, os.listdir(tmp_path / "third")) == (None, "killed", [])
    finally:
        server.close()


def test_a_server_that_dies_is_told_with_its_exit_code():
    with pytest.raises(RuntimeError) as caught:
        Server("tests.crash.spoiled:dead")
    assert str(caught.value) == "fork server: it died, got exit code 3. Read what it wrote to stderr."


def test_a_server_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(fork_server, "END_SECONDS", 0.1)
    server = Server("tests.crash.spoiled:lingering")
    server.close()
    assert server.process.returncode == -signal.SIGKILL


@WATCHED
def test_a_kernel_that_refuses_is_told(monkeypatch):
    def refused():
        raise OSError(1, "seccomp is refused, Operation not permitted")

    assert fork_server.why_not_watched() == ""
    monkeypatch.setattr(fork_server.seccomp, "install", refused)
    assert fork_server.why_not_watched() == "[Errno 1] seccomp is refused, Operation not permitted"


def test_a_memory_that_is_not_brought_back_is_found(rounds):
    runs = rounds("smallest", "tests.crash.spoiled:forgetful")
    problems = runs.killed(Plan("kill", runs.num_calls - 2))
    assert [problem.rpartition(": ")[0].rpartition(": ")[2] for problem in problems] == [
        "the run.plugins.witness.evaluated"
    ]


def test_a_run_that_needs_a_person_is_found(rounds):
    problems = rounds("smallest", "tests.crash.spoiled:needy").killed(Plan("kill", 20))
    assert len(problems) == 1
    assert "a person is needed: RuntimeError: " in problems[0]


@WATCHED
def test_a_run_that_hangs_at_a_fault_is_found(rounds):
    runs = rounds("smallest", "tests.crash.spoiled:stuck")
    first = next(at for at, call in runs.numbered() if call.name in FLUSHES)
    problems = runs.disturbed(Plan("fail", first, errno=errno.EIO, patience_seconds=3.0))
    assert [problem.rpartition(": ")[2] for problem in problems] == ["it hangs"]


@WATCHED
@pytest.mark.parametrize(
    "cut",
    [
        lambda runs: runs.disturbed(Plan("fail", 1, errno=errno.EIO)),
        lambda runs: runs.killed(Plan("kill", 1)),
        lambda runs: runs.power_cut(1, nothing),
        lambda runs: runs.resumed_when_finished(),
    ],
)
def test_a_start_that_hangs_is_found(server, tmp_path, monkeypatch, cut):
    runs = Rounds(server, "run", tmp_path, Figures(), target="tests.crash.runs:run", options={"name": "smallest"})
    assert runs.disk
    monkeypatch.setattr(server, "run", lambda job: Ended(Account(ending="hung")))
    assert cut(runs)[0].endswith(": it hangs")
    assert runs.figures.failures == 1


@WATCHED
def test_a_save_that_was_announced_too_early_is_found(rounds):
    runs = rounds("smallest", "tests.crash.spoiled:early")
    first = next(at for at, call in enumerate(runs.account.calls) if call.name == "announce")
    problems = runs.killed(Plan("kill", first + 5))
    assert problems[0].endswith("checkpoint-2 was announced, and it began at None")


@WATCHED
def test_a_flush_that_is_missing_is_found(rounds):
    runs = rounds("smallest", "tests.crash.spoiled:without_flushes")
    problems = runs.power_cut(len(runs.account.calls), names_alone)
    assert any("was announced and is not whole" in problem for problem in problems)


CALLS = (
    Call("mkdir", (".",)),
    Call("fsync", ("..",)),
    Call("openat", ("a",), flags=os.O_CREAT),
    Call("write", ("a",), b"12345", 5, 0),
    Call("fsync", ("a",)),
    Call("write", ("a",), b"678", 3, None),
    Call("fsync", (".",)),
    Call("rename", ("a", "b")),
)


@pytest.mark.parametrize(
    ("at", "survival", "left"),
    [
        (2, nothing, {}),
        (5, nothing, {}),
        (5, names_alone, {"a": b"12345"}),
        (4, names_alone, {"a": b""}),
        (6, nothing, {}),
        (7, nothing, {"a": b"12345"}),
        (7, contents_alone, {"a": b"12345678"}),
        (8, nothing, {"a": b"12345"}),
        (8, names_alone, {"b": b"12345"}),
    ],
)
def test_the_model_keeps_what_was_flushed_and_of_the_rest_what_one_likes(at, survival, left):
    tree = Disk(CALLS).after(at, survival)
    assert (tree.entries, tree.exists) == (left, True)


def test_a_folder_whose_name_was_not_flushed_is_gone():
    assert not Disk(CALLS).after(1, nothing).exists
