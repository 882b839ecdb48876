"""Which folders are checkpoints, how one gets its name, and which are deleted."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from trainer_core_checkpointing import folder
from trainer_core_checkpointing.manifest import Manifest, read_manifest, write_manifest


def make(output_dir, step, run="a", generation=0, name=None):
    path = output_dir / (name or f"checkpoint-{step}")
    path.mkdir(parents=True)
    write_manifest(path, Manifest(run, generation, step, 1, 4, 42, True, "2026-01-01T00:00:00+00:00"))
    return path


def names(output_dir):
    return sorted(path.name for path in output_dir.iterdir())


def test_newest_is_told_by_generation_and_step_and_never_by_date(tmp_path):
    for step, generation in ((900, 0), (20, 1), (5, 0), (100, 1)):
        os.utime(make(tmp_path, step, generation=generation), (step, step))
    assert [path.name for path, _ in folder.complete(tmp_path)] == [
        "checkpoint-100",
        "checkpoint-20",
        "checkpoint-900",
        "checkpoint-5",
    ]


def test_a_folder_of_another_name_without_manifest_or_of_another_step_is_no_checkpoint(tmp_path):
    make(tmp_path, 3)
    make(tmp_path, 4, name="checkpoint-5")
    make(tmp_path, 6, name="checkpoint-best")
    make(tmp_path, 7, name="checkpoint-007")
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-9").symlink_to(tmp_path / "checkpoint-3")
    assert [path.name for path, _ in folder.complete(tmp_path)] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, [], [1, 2, 3, 10]),
        (3, [], [2, 3, 10]),
        (1, [], [10]),
        (1, ["checkpoint-2"], [2, 10]),
        (2, ["checkpoint-2"], [2, 10]),
        (2, ["checkpoint-99"], [3, 10]),
        (9, [], [1, 2, 3, 10]),
    ],
)
def test_the_oldest_go_first_and_never_the_newest_or_the_best(limit, keep, left, tmp_path):
    for step in (1, 2, 3, 10):
        make(tmp_path, step)
    folder.rotate(tmp_path, limit, "a", keep)
    assert [folder.step_of(path) for path in folder.numbered(tmp_path)] == left[::-1]


def test_rotation_leaves_alone_what_is_not_of_this_run(tmp_path):
    make(tmp_path, 1)
    make(tmp_path, 2)
    make(tmp_path, 3, run="b", generation=1)
    make(tmp_path, 4, name="checkpoint-old-mine")
    (tmp_path / "checkpoint-5").mkdir()
    folder.rotate(tmp_path, 1, "a", [])
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-5", "checkpoint-old-mine"]


def test_a_checkpoint_replaces_the_one_of_its_step(tmp_path):
    make(tmp_path, 4, run="old")
    staging = make(tmp_path, 4, run="new", name=folder.staging_name(4))
    folder.put_in_place(staging, tmp_path / "checkpoint-4")
    assert read_manifest(tmp_path / "checkpoint-4").run == "new"
    assert names(tmp_path) == ["checkpoint-4"]


def test_a_folder_in_the_way_that_is_not_ours_is_kept(tmp_path, caplog):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "mine.txt").write_text("precious")
    staging = make(tmp_path, 4, name=folder.staging_name(4))
    with caplog.at_level(logging.WARNING):
        folder.put_in_place(staging, tmp_path / "checkpoint-4")
    assert (tmp_path / "checkpoint-4.kept-1" / "mine.txt").read_text() == "precious"
    assert "is kept as checkpoint-4.kept-1" in caplog.text


def test_the_old_one_comes_back_when_the_rename_fails(tmp_path):
    make(tmp_path, 4, run="old")
    with pytest.raises(OSError, match="No such file"):
        folder.put_in_place(tmp_path / "missing", tmp_path / "checkpoint-4")
    assert read_manifest(tmp_path / "checkpoint-4").run == "old"
    assert names(tmp_path) == ["checkpoint-4"]


def test_leftovers_of_dead_processes_are_tidied_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    make(tmp_path, 1, name=f".tmp-checkpoint-1-{dead.pid}")
    make(tmp_path, 2, name=f".tmp-checkpoint-2-{os.getpid()}")
    make(tmp_path, 3, name=".tmp-checkpoint-3-1")
    make(tmp_path, 4, name=f".old-checkpoint-4-{dead.pid}")
    make(tmp_path, 5, name=f".old-checkpoint-5-{dead.pid}")
    make(tmp_path, 5)
    make(tmp_path, 6, name=f".del-checkpoint-6-{dead.pid}")
    make(tmp_path, 7, name=".tmp-mine")
    folder.tidy(tmp_path)
    assert names(tmp_path) == [".tmp-checkpoint-3-1", ".tmp-mine", "checkpoint-4", "checkpoint-5"]


def test_a_folder_that_cannot_be_deleted_is_said(tmp_path, caplog, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder.shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        folder.delete(make(tmp_path, 4))
    assert "could not be deleted" in caplog.text
    assert folder.complete(tmp_path) == []
