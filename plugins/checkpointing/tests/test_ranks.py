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
    assert "was saved on 2 rank(s), this run has 1" in (folder / "stderr").read_text()
    assert alone["history"][:2] == results(folder, "whole")[0]["history"][:2]


def test_a_failure_on_one_rank_fails_on_all_and_leaves_nothing(folder):
    main, other = results(folder, "breaking")
    assert "rank 1: rank-00001.plugins.Breaking.seen: cannot be saved without pickling" in main["error"]
    assert other["error"].startswith("CheckpointError: rank-00001.plugins.Breaking.seen: cannot be saved")
    assert [path for path in (folder / "breaking").iterdir() if "checkpoint" in path.name] == []


def test_a_plugin_that_fails_on_one_rank_ends_all_at_one_boundary_and_no_update_is_lost(folder):
    main, other = (rank["error"].splitlines() for rank in results(folder, "failing"))
    (ended, step, *_), theirs = (rank["ended"] for rank in results(folder, "failing"))
    assert (ended, theirs[:2], step in range(4, 8)) == ("failed", ["failed", step], True)
    told = "rank 1: a plugin failed there, got LookupError('on one rank alone'). Look at its output."
    assert main[0] == f"DistributedError: {told}"
    assert other[:2] == ["LookupError: on one rank alone", "raised in plugin 'failing', hook on_step_end"]
    assert main[1:] == other[2:]
    assert verify(folder / "failing" / f"checkpoint-{step}").world_size == 2


def test_ranks_that_failed_together_go_on_exactly(folder):
    whole, again = results(folder, "whole"), results(folder, "failed")
    for mine, theirs in zip(again, whole, strict=True):
        assert (mine["weights"], mine["random"], mine["history"]) == (
            theirs["weights"], theirs["random"], theirs["history"],
        )  # fmt: skip


def test_a_signal_to_one_rank_ends_an_evaluation_on_all_and_is_saved(folder):
    assert [rank["ended"] for rank in results(folder, "signalled")] == [["interrupted", 4, -1, 143]] * 2
    assert verify(folder / "signalled" / "checkpoint-4").world_size == 2


def test_saves_behind_the_training_land_on_all_ranks_at_one_boundary_and_change_nothing(folder):
    whole, behind = results(folder, "whole"), results(folder, "behind")
    for mine, theirs in zip(behind, whole, strict=True):
        assert [step for _, step, _ in mine["saves"]] == [3, 4, 6, 8]
        assert all(is_there and name == f"checkpoint-{step}" for name, step, is_there in mine["saves"])
        assert {**mine, "saves": []} == theirs
    kept = sorted(path.name for path in (folder / "whole").glob("checkpoint-*"))
    assert sorted(path.name for path in (folder / "behind").glob("checkpoint-*")) == kept
    for name in kept:
        mine, theirs = (verify(folder / job / name).files for job in ("behind", "whole"))
        assert mine.keys() == theirs.keys()
        assert all(mine[file] == theirs[file] for file in mine if file.endswith(".safetensors"))


@pytest.mark.parametrize("name", ["full", "full_behind"])
def test_a_disk_that_is_full_for_one_rank_costs_all_of_them_one_save(name, folder):
    whole = results(folder, "whole")
    for mine, theirs in zip(results(folder, name), whole, strict=True):
        assert [step for _, step, _ in mine["saves"]] == [3, 4, 8]
        assert {**mine, "saves": [], "best": ""} == {**theirs, "best": ""}
    assert not list((folder / name).glob(".*-checkpoint-*"))
    assert "rank 1: could not be written, rank-00001.safetensors: No space left" in (folder / "stderr").read_text()
