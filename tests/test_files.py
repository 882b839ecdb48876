"""A file is replaced as a whole, or not at all; a folder that is made is there after a power cut."""

import os

import pytest

from trainer_core import replace_file
from trainer_core.files import make_folder


def test_a_file_is_made_and_replaced(tmp_path):
    for content in (b"first", b"second"):
        replace_file(tmp_path / "a.json", content)
        assert (tmp_path / "a.json").read_bytes() == content
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("kind", ["a file", "a link", "a pipe"])
def test_what_bears_the_name_of_the_new_file_goes_and_is_not_followed(tmp_path, kind):
    (tmp_path / "mine").write_text("precious")
    staged = tmp_path / f".a.json.{os.getpid()}"
    if kind == "a file":
        staged.write_text("left by a killed run, and longer")
    elif kind == "a link":
        staged.symlink_to(tmp_path / "mine")
    else:
        os.mkfifo(staged)
    replace_file(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert (tmp_path / "mine").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "mine"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, call):
    def failing(*args):
        raise OSError(28, "No space left on device")

    replace_file(tmp_path / "a.json", b"first")
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "a.json", b"second")
    monkeypatch.undo()
    assert (tmp_path / "a.json").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_content_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("flush") or fsync(descriptor))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("rename") or replace(*paths))
    replace_file(tmp_path / "a.json", b"first")
    assert done == ["flush", "rename", "flush"]


def test_the_name_of_each_folder_that_is_made_is_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert flushed == [str(tmp_path), str(tmp_path / "a")]
    make_folder(tmp_path / "a" / "b")
    assert len(flushed) == 2
