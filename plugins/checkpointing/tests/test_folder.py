"""Which folders are checkpoints, how one gets its name, and which are deleted."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from trainer_core_checkpointing import folder
from trainer_core_checkpointing.manifest import FileEntry, Manifest, read_manifest, write_manifest


def make(output_dir, step, run="a", generation=0, name=None):
    path = output_dir / (name or f"checkpoint-{step}")
    path.mkdir(parents=True)
    write_manifest(path, Manifest(run, generation, step, 1, 4, 42, False, "2026-01-01T00:00:00+00:00"))
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


@pytest.mark.parametrize("to", ["a checkpoint", "a file", "itself", "nowhere"])
def test_a_link_in_the_way_is_kept_and_not_followed(to, tmp_path):
    elsewhere = make(tmp_path / "elsewhere", 3)
    place = tmp_path / "run" / "checkpoint-3"
    staging = make(tmp_path / "run", 3, name=folder.staging_name(3))
    place.symlink_to({"a checkpoint": elsewhere, "a file": elsewhere / "manifest.json", "itself": place}.get(to, to))
    folder.put_in_place(staging, place)
    assert names(tmp_path / "run") == ["checkpoint-3", "checkpoint-3.kept-1"]
    assert not place.is_symlink()
    assert (tmp_path / "run" / "checkpoint-3.kept-1").is_symlink()
    assert names(elsewhere) == ["manifest.json"]


@pytest.mark.parametrize("kind", ["tmp", "old", "del"])
def test_a_link_named_like_a_leftover_is_removed_and_what_it_leads_to_stays(kind, tmp_path):
    elsewhere = make(tmp_path / "elsewhere", 3)
    make(tmp_path / "run", 3)
    (tmp_path / "run" / f".{kind}-checkpoint-3-99999999").symlink_to(elsewhere)
    folder.tidy(tmp_path / "run")
    assert names(tmp_path / "run") == ["checkpoint-3"]
    assert names(elsewhere) == ["manifest.json"]


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


@pytest.mark.parametrize("is_first", [True, False])
def test_a_name_that_is_not_durable_is_taken_back(is_first, tmp_path, monkeypatch):
    class Failing(folder.files.Calls):
        left = 1 if is_first else 2

        def flush(self, descriptor):
            self.left -= 1
            if self.left == 0:
                raise OSError(5, "Input/output error")

    if not is_first:
        make(tmp_path, 4, run="old")
    staging = make(tmp_path, 4, run="new", name=folder.staging_name(4))
    monkeypatch.setattr(folder.files, "calls", Failing())
    with pytest.raises(OSError, match="Input/output error"):
        folder.put_in_place(staging, tmp_path / "checkpoint-4")
    assert names(tmp_path) == sorted([staging.name] if is_first else [staging.name, "checkpoint-4"])
    assert is_first or read_manifest(tmp_path / "checkpoint-4").run == "old"


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

    monkeypatch.setattr(folder.files, "remove_tree", refuse)
    with caplog.at_level(logging.WARNING):
        assert not folder.delete(make(tmp_path, 4))
    assert "could not be deleted" in caplog.text
    assert folder.complete(tmp_path) == []


# What is somebody else's ------------------------------------------------------------------------------------------


def add_a_file(path):
    (path / "notes.txt").write_text("precious")


def add_a_link(path):
    (path / "data").symlink_to(path.parent)


def add_a_folder_with_a_file(path):
    (path / "mine").mkdir()
    (path / "mine" / "notes.txt").write_text("precious")


@pytest.mark.parametrize("add", [add_a_file, add_a_link, add_a_folder_with_a_file])
def test_a_checkpoint_into_which_the_user_put_something_is_never_deleted(add, tmp_path, caplog):
    for step in (1, 2, 3):
        make(tmp_path, step)
    make(tmp_path, 9, run="b")
    for step in (1, 9):
        add(tmp_path / f"checkpoint-{step}")
    folder.rotate(tmp_path, 1, "a", [])
    assert folder.prune(tmp_path, "a", [], lambda: False) == []
    folder.delete_of_others(tmp_path, "a")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-9"]
    assert f"{tmp_path / 'checkpoint-1'}: is kept, it holds files that no save has written." in caplog.text


@pytest.mark.parametrize("add", [add_a_file, add_a_link])
def test_a_checkpoint_with_something_of_the_users_makes_room_and_is_kept(add, tmp_path):
    make(tmp_path, 4, run="old")
    add(tmp_path / "checkpoint-4")
    folder.put_in_place(make(tmp_path, 4, run="new", name=folder.staging_name(4)), tmp_path / "checkpoint-4")
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-4.kept-1"]
    assert read_manifest(tmp_path / "checkpoint-4").run == "new"


def test_a_link_that_is_named_like_a_checkpoint_is_left_alone(tmp_path):
    elsewhere = make(tmp_path / "elsewhere", 1)
    (tmp_path / "checkpoint-1").symlink_to(elsewhere)
    for step in (2, 3):
        make(tmp_path, step)
    folder.rotate(tmp_path, 1, "a", [])
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "elsewhere"]
    assert read_manifest(elsewhere).step == 1


# Space ------------------------------------------------------------------------------------------------------------


def test_pruning_ends_when_there_is_space_and_spares_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4, 5):
        make(tmp_path, step)
    assert folder.prune(tmp_path, "a", ["checkpoint-2"], lambda: len(names(tmp_path)) <= 3) == [
        "checkpoint-1",
        "checkpoint-3",
    ]
    assert folder.prune(tmp_path, "a", ["checkpoint-2"], lambda: False) == ["checkpoint-4"]
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-5"]


def test_pruning_spares_the_newest_that_is_whole_and_what_is_newer(tmp_path):
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    entries = {"model.safetensors": FileEntry(3, "0" * 64)}
    for step in (3, 4):
        write_manifest(tmp_path / f"checkpoint-{step}", Manifest("a", 0, step, 1, 4, 42, False, "", files=entries))
    assert folder.prune(tmp_path, "a", [], lambda: False) == ["checkpoint-1"]
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_pruning_spares_weights_that_are_queued_for_a_push_and_rotation_leaves_them_their_second_name(tmp_path):
    entries = {"model.safetensors": FileEntry(3, "0" * 64)}
    for step in (1, 2, 3):
        path = make(tmp_path, step)
        (path / "model.safetensors").write_text("abc")
        write_manifest(path, Manifest("a", 0, step, 1, 4, 42, False, "", files=entries if step < 3 else {}))
        if step == 3:
            (path / "model.safetensors").unlink()
    queued = tmp_path / ".outbox" / "model.safetensors"
    queued.parent.mkdir()
    os.link(tmp_path / "checkpoint-1" / "model.safetensors", queued)
    assert folder.prune(tmp_path, "a", [], lambda: False) == ["checkpoint-2"]
    folder.rotate(tmp_path, 1, "a", [])
    assert names(tmp_path) == [".outbox", "checkpoint-3"]
    assert queued.read_text() == "abc"
