"""Several ranks search together: the main one proposes, all train the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

SCRIPT = Path(__file__).with_name("ranks_script.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives the folder in which all jobs of the script have run."""
    folder = tmp_path_factory.mktemp("ranks")
    with (folder / "stderr").open("w") as stderr:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(SCRIPT), str(folder)]
        status = subprocess.run(command, env=environment, stdout=stderr, stderr=stderr, timeout=200, check=False)
    assert status.returncode == 0, (folder / "stderr").read_text()[-4000:]
    return folder


def results(folder, job):
    return [json.loads((folder / f"{job}-{rank}.json").read_text()) for rank in range(2)]


def trials(folder, job):
    return optuna.load_study(study_name="tuning", storage=f"sqlite:///{folder}/{job}/tuning.db").trials


def test_all_ranks_train_what_the_main_rank_proposes(folder):
    main, other = results(folder, "search")
    found = trials(folder, "search")
    assert main == other
    assert [(rate, dropout) for rate, dropout, _ in main["seen"]] == [tuple(one.params.values()) for one in found]
    assert [list(one.params) for one in found] == [["learning_rate", "dropout"]] * 4
    assert [Path(output_dir).name for *_, output_dir in main["seen"]] == [f"run-{place}" for place in range(4)]
    assert main["best"][:2] == ["0", 1.0]


def test_all_ranks_end_a_trial_that_is_pruned(folder):
    assert [one.state.name for one in trials(folder, "search")] == ["COMPLETE", "FAIL", "PRUNED", "PRUNED"]
    lines = (folder / "search" / "run-2" / "journal-rank1.jsonl").read_text()
    assert "MedianPruner ends trial 2: objective 3 at step 2, best so far 1 of trial 0" in lines


def test_an_error_on_all_ranks_that_is_caught_fails_the_trial(folder):
    assert [result["error"] for result in results(folder, "search")] == ["", ""]
    assert trials(folder, "search")[1].user_attrs["why"] == "MemoryError: too much"


def test_an_error_of_the_main_rank_ends_the_search_on_all(folder):
    main, other = results(folder, "wrong")
    told = "DataError: compute_objective: must return one number, got 'low'. Return floats."
    assert main["error"] == told
    assert other["error"] == f"DistributedError: hyperparameter_search: the main rank failed, {told}"
    assert [one.state.name for one in trials(folder, "wrong")] == ["FAIL"]


def test_the_callers_settings_are_as_before_on_all_ranks(folder):
    assert {result["lr"] for job in ("search", "wrong") for result in results(folder, job)} == {5e-05}
