"""A run goes on with other ranks or another micro-batch: no sample is lost or doubled, and no update changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer_core import CheckpointError
from trainer_core.batching import Batching
from trainer_core_checkpointing.worldsize import read_position

SCRIPT = Path(__file__).with_name("worldsize_script.py")
GOES_ON = [
    "1 to 2",
    "2 to 1",
    "2 to 3",
    "3 to 2",
    "4 to 1",
    "4 to 3 with workers",
    "2 to 1 at the end of an epoch",
    "other micro-batches",
    "stream, 2 to 3",
    "stream, 3 to 1 at the end of an epoch",
    "stream, 2 to 1, no tail",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives the folder in which all cases of the script have run."""
    folder = tmp_path_factory.mktemp("worldsize")
    command, environment = [sys.executable, str(SCRIPT), str(folder)], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def results(folder):
    """Gives what each rank wrote in a job of a case."""

    def read(case, job):
        place = folder / case.replace(",", "").replace(" ", "-")
        return [json.loads(path.read_text()) for path in sorted(place.glob(f"{job}-*.json"))]

    return read


def updates(ranks):
    """Gives the samples of each update, over all ranks, in the order of their numbers."""
    steps = sorted({int(step) for rank in ranks for step in rank["seen"]})
    return {step: sorted(chain(*(rank["seen"].get(str(step), []) for rank in ranks))) for step in steps}


def losses(rank):
    return {row["step"]: row["loss"] for row in rank["rows"] if "loss" in row}


def others(rank):
    return [{k: v for k, v in row.items() if "loss" not in k and k != "grad_norm"} for row in rank["rows"]]


@pytest.mark.slow
@pytest.mark.parametrize("case", GOES_ON)
def test_each_update_has_the_samples_of_the_run_that_nobody_cut(results, case):
    whole, cut, resumed = (updates(results(case, job)) for job in ("whole", "cut", "resumed"))
    assert not set(cut) & set(resumed)
    assert cut | resumed == whole
    assert len(whole) in (8, 10)


@pytest.mark.slow
@pytest.mark.parametrize("case", GOES_ON)
def test_an_epoch_has_each_sample_once(results, case):
    whole = updates(results(case, "cut")) | updates(results(case, "resumed"))
    half = len(whole) // 2
    for steps in (range(1, half + 1), range(half + 1, 2 * half + 1)):
        counted = Counter(chain(*(whole[step] for step in steps)))
        assert set(counted.values()) == {1}
        assert len(counted) == (53 if half == 5 else 48)


@pytest.mark.slow
@pytest.mark.parametrize("case", GOES_ON)
def test_rows_counts_and_lengths_are_those_of_the_run_that_nobody_cut(results, case):
    whole, resumed = results(case, "whole"), results(case, "resumed")
    assert {rank["error"] for rank in (*whole, *resumed)} == {""}
    for rank in resumed:
        assert others(rank) == others(whole[0])
        assert losses(rank) == pytest.approx(losses(whole[0]), rel=1e-5)
        assert (rank["samples"], rank["max_steps"]) == (whole[0]["samples"], whole[0]["max_steps"])
        assert rank["plan"][1:] == whole[0]["plan"][1:]


@pytest.mark.slow
def test_accumulation_that_is_adapted_is_said_once_and_planned(results):
    main, other = results("1 to 2", "resumed")
    line = (
        "gradient_accumulation_steps: is 3 instead of 6; an update keeps its 12 samples (2 a micro-batch × 3 "
        "accumulated × 2 ranks)."
    )
    assert (main["said"].count(line), other["said"].count(line)) == (1, 0)
    assert main["plan"][0] == "2 a micro-batch × 3 accumulated × 2 ranks = 12 samples an update"


@pytest.mark.slow
def test_random_states_of_ranks_follow_from_their_number_and_that_is_said(results):
    main, other = results("1 to 2", "resumed")
    assert main["random"] != other["random"]
    line = (
        "checkpoint-2: was saved on 1 rank(s), this run has 2; random states of a rank follow from seed, rank and step."
    )
    assert line in main["said"]
    again = results("other micro-batches", "resumed"), results("other micro-batches", "whole")
    assert [rank["random"] for rank in again[0]] == [rank["random"] for rank in again[1]]


def test_where_a_loader_of_the_users_is_on_other_ranks_is_not_known_and_refused():
    def position(world_size):
        stream, batching = SimpleNamespace(is_own=False), Batching(2, 1, world_size, window=4)
        trainer = SimpleNamespace(train_stream=stream, batching=batching)
        return read_position(trainer, SimpleNamespace(world_size=2, batch_size=2), {"batches_done": 3})

    assert position(2) == 3
    with pytest.raises(CheckpointError) as caught:
        position(3)
    assert str(caught.value) == (
        "get_train_dataloader: gives a loader of its own, and what of its data is done on 2 ranks is not known on "
        "others, got 3. Resume on 2, or let the trainer make the loader."
    )


@pytest.mark.slow
def test_ranks_that_cannot_keep_the_samples_of_an_update_are_refused_with_what_would_work(results):
    assert {(rank["error"], str(rank["seen"])) for rank in results("refused", "resumed")} == {
        (
            "SettingsError: 1 setting is wrong:\n  per_device_train_batch_size: the run has 12 samples an update, "
            "which 3 ranks cannot share out evenly in micro-batches of one size, got 5. Resume with 1, 2 or 4 on 3 "
            "ranks.",
            "{}",
        )
    }
