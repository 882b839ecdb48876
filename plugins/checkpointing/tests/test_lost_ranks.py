"""A rank that dies, hangs, fails or gets a signal: the others name it and end, and what is resumed loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("lost_ranks_script.py")
OWN = "ValueError: a mistake of the user's"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives the folder in which all cases of the script have run."""
    folder = tmp_path_factory.mktemp("lost")
    command, environment = [sys.executable, str(SCRIPT), str(folder)], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture
def ends(folder):
    """Gives what each rank wrote that ended by itself, and how all processes ended."""

    def read(name, job="cut"):
        place = folder / name.replace(" ", "-")
        told = {int(path.stem[-1]): json.loads(path.read_text()) for path in place.glob(f"{job}-*.json")}
        return told, json.loads((place / f"{job}.statuses").read_text())

    return read


def errors(told):
    return {rank: result["error"] for rank, result in sorted(told.items())}


def process_of(text):
    """Replaces what is another number in each run."""
    return re.sub(r"process \d+ on \S+,", "process N on HOST,", text)


@pytest.mark.parametrize(
    ("name", "lost", "status"),
    [("killed", 1, signal.SIGKILL), ("killed main", 0, signal.SIGKILL), ("exited", 1, 3 << 8)],
)
def test_a_rank_that_dies_is_named_by_all_others_at_once(ends, name, lost, status):
    told, statuses = ends(name)
    others = [rank for rank in range(len(statuses)) if rank != lost]
    assert statuses == [status if rank == lost else 0 for rank in range(len(statuses))]
    assert sorted(told) == others
    for result in told.values():
        error = process_of(result["error"])
        assert error.startswith(
            f"DistributedError: rank {lost}: died without a word, it was killed or crashed; got process N on HOST, "
            f"last in phase "
        )
        assert error.endswith(". Look at its output and at the machine's memory.")
        assert result["seconds"] < 20
        assert result["notes"][-1] == (
            "the newest checkpoint is of step 12: resume_from_checkpoint=True goes on from there"
        )
        assert (result["outcome"], result["threads"]) == ("failed", [])


def test_what_a_rank_did_last_is_told(ends):
    error = ends("killed")[0][0]["error"]
    assert f"last in phase STEP after step 14, {SCRIPT}:" in error
    assert " in hurt." in error


def test_a_rank_that_is_stopped_is_named_when_the_bound_is_over(ends):
    told, _ = ends("stopped")
    assert re.match(
        r"DistributedError: rank 1: gave no sign of life for \d+ s, it is stopped or its machine is gone; got process "
        r"N on HOST, last in phase .*\. Look at the machine, or raise ddp_heartbeat_timeout\.",
        process_of(told[0]["error"]),
    )
    assert told[0]["seconds"] > 3


def test_a_rank_that_keeps_the_others_waiting_is_named_and_ended_with_its_place(folder, ends):
    told, statuses = ends("locked")
    assert process_of(told[0]["error"]).startswith(
        f"DistributedError: rank 1: kept the others waiting, who gave up after ddp_timeout; got process N on HOST, in "
        f"phase STEP after step 14, {SCRIPT}:"
    )
    assert statuses == [0, 1 << 8]
    said = (folder / "stderr").read_text()
    assert "rank 1 does not end by itself, it is here:" in said
    assert re.search(r'File ".*lost_ranks_script\.py", line \d+ in hurt', said)


@pytest.mark.parametrize(
    ("name", "failing", "step"),
    [("item", 1, 14), ("item of main", 0, 14), ("loss", 1, 6), ("both items", None, 14), ("metric", 1, 13)],
)
def test_ranks_tell_the_error_of_the_one_that_failed_and_save_the_step_together(ends, name, failing, step):
    told, statuses = ends(name)
    phase = "EVAL" if name == "metric" else "STEP"
    named = (
        f"DistributedError: rank {failing}: failed in phase {phase} after step {step}, got {OWN}. Look at its output."
    )
    assert errors(told) == {rank: OWN if failing in (rank, None) else named for rank in range(len(statuses))}
    for result in told.values():
        assert f"saved at step {step} first: resume_from_checkpoint=True goes on from " in result["notes"][-1]
        assert result["notes"][-1].endswith(f"checkpoint-{step}")


def test_a_failure_before_the_first_step_saves_nothing(folder, ends):
    told, _ = ends("before the first step")
    assert errors(told)[1] == OWN
    assert errors(told)[0].startswith("DistributedError: rank 1: failed in phase STEP after step 0")
    assert list((folder / "before-the-first-step" / "out").glob("checkpoint-*")) == []


def test_a_rank_that_is_to_stop_at_once_stops_all(ends):
    told, _ = ends("stopped at once")
    assert errors(told) == {
        0: "DistributedError: rank 1: failed in phase STEP after step 14, got KeyboardInterrupt: stopped at once. Look "
        "at its output.",
        1: "KeyboardInterrupt: stopped at once",
    }


@pytest.mark.parametrize("name", ["signal to one", "signal to all", "late signal"])
def test_ranks_that_get_a_signal_at_different_moments_save_one_step(folder, ends, name):
    told, _ = ends(name)
    assert {(result["error"], result["outcome"]) for result in told.values()} == {("", "interrupted")}
    (step,) = {result["step"] for result in told.values()}
    assert (folder / name.replace(" ", "-") / "out" / f"checkpoint-{step}").is_dir()


@pytest.mark.parametrize(
    "name",
    ["killed", "item", "item of main", "both items", "loss", "callback", "metric", "signal to one", "signal to all"],
)
def test_what_is_resumed_ends_as_the_run_that_nobody_cut(ends, name):
    again = ends(name, "resumed")[0]
    whole = ends("whole" if len(again) == 2 else "whole of three")[0]
    assert errors(again) == dict.fromkeys(range(len(whole)), "")
    for rank, result in again.items():
        assert result["resumed"].startswith("checkpoint-")
        assert result["weights"] == whole[rank]["weights"]
        assert result["rows"] == whole[rank]["rows"]


def test_a_job_of_torchrun_goes_on_by_itself_when_a_rank_is_killed(ends, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first = json.loads((tmp_path / "attempt0-0.json").read_text())
    assert first["error"].startswith("DistributedError: rank 1: died without a word")
    for rank in (0, 1):
        second = json.loads((tmp_path / f"attempt1-{rank}.json").read_text())
        assert (second["error"], second["resumed"]) == ("", "checkpoint-12")
        assert second["weights"] == ends("whole")[0][rank]["weights"]
        assert second["rows"] == ends("whole")[0][rank]["rows"]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".tmp")] == []
