"""Several ranks write one checkpoint, fail together, and go on exactly; also as another number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_core_checkpointing.manifest import verify

SCRIPT = Path(__file__).with_name("ranks_script.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives the folder in which all jobs of the script have run."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(SCRIPT), str(folder)]
    with (folder / "stderr").open("w") as stderr:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        status = subprocess.run(command, env=environment, stderr=stderr, timeout=240, check=False).returncode
    assert status == 0, (folder / "stderr").read_text()[-3000:]
    return folder


def results(folder, name, ranks=2):
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]


def test_the_files_of_every_rank_are_in_the_manifest(folder):
    manifest = verify(folder / "kept" / "checkpoint-5")
    assert manifest.world_size == 2
    assert {f"rank-0000{rank}.{kind}" for rank in (0, 1) for kind in ("json", "safetensors")} <= manifest.files.keys()


def test_two_ranks_go_on_exactly(folder):
    whole, again = results(folder, "whole"), results(folder, "resumed")
    assert {rank["resumed"] for rank in again} == {str(folder / "cut" / "checkpoint-5")}
    for mine, theirs in zip(again, whole, strict=True):
        assert theirs["error"] == ""
        assert {**mine, "resumed": ""} == {**theirs, "resumed": ""}


def test_one_rank_goes_on_for_two_from_the_same_sample(folder):
    (alone,) = results(folder, "fewer", 1)
    assert (alone["error"], alone["epoch"]) == ("", 2.0)
    assert "was saved on 2 ranks, this run has 1" in (folder / "stderr").read_text()
    assert alone["history"][:2] == results(folder, "whole")[0]["history"][:2]


def test_a_failure_on_one_rank_fails_on_all_and_leaves_nothing(folder):
    main, other = results(folder, "breaking")
    assert "rank 1: rank-00001.plugins.Breaking.seen: cannot be saved without pickling" in main["error"]
    assert other["error"].startswith("CheckpointError: rank-00001.plugins.Breaking.seen: cannot be saved")
    assert [path for path in (folder / "breaking").iterdir() if "checkpoint" in path.name] == []
