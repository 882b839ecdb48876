"""The file layer: what is written is what was given, in however many calls, and an error names its file."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from trainer_core_checkpointing import files


class Greedy(files.Calls):
    """Takes at most three bytes of a write, which is what a write may do."""

    def write(self, descriptor, piece):
        return super().write(descriptor, piece[:3])


class Full(files.Calls):
    """Has no space after the first write."""

    def __init__(self):
        self.written = 0

    def write(self, descriptor, piece):
        self.written += 1
        if self.written > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(descriptor, piece[: len(piece) // 2])


@pytest.mark.parametrize("in_parallel", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2**20, 3 * files.CHUNK + 5])
def test_a_file_holds_its_pieces_and_the_checksum_is_of_them(size, in_parallel, tmp_path):
    content = os.urandom(size)
    pieces = [content[:7], memoryview(content)[7:]]
    sha256 = files.write_file(tmp_path / "a", pieces, size, in_parallel=in_parallel)
    assert (tmp_path / "a").read_bytes() == content
    assert sha256 == hashlib.sha256(content).hexdigest()


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "calls", Greedy())
    files.write_file(tmp_path / "a", [b"0123456789"], 10, in_parallel=False)
    files.write_at(tmp_path / "a", 4, b"abcdefgh")
    assert (tmp_path / "a").read_bytes() == b"0123abcdefgh"


@pytest.mark.parametrize("in_parallel", [False, True])
def test_an_error_names_the_file_and_leaves_no_thread(in_parallel, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "calls", Full())
    content = bytes(4 * files.CHUNK)
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_file(tmp_path / "a", [content], len(content), in_parallel=in_parallel)
    assert caught.value.filename == str(tmp_path / "a")


def test_a_file_that_is_there_is_never_written_over(tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        files.write_file(tmp_path / "a", [b"other"], 5, in_parallel=False)
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_a_tree_is_removed_and_what_its_links_point_to_is_not(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("precious")
    doomed = tmp_path / "doomed"
    (doomed / "deep" / "er").mkdir(parents=True)
    (doomed / "deep" / "file").write_text("x")
    (doomed / "folder").symlink_to(tmp_path / "mine")
    (doomed / "deep" / "broken").symlink_to(tmp_path / "nowhere")
    files.remove_tree(doomed)
    assert not doomed.exists()
    assert (tmp_path / "mine" / "a").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="there is no such advice here")
def test_the_disk_begins_with_each_window_before_the_flush(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "_WINDOW", 2**20)
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *window: asked.append(window[:2]))
    pieces = [bytes(2**19 + 2**17)] * 5
    files.write_file(tmp_path / "a", pieces, 5 * len(pieces[0]), in_parallel=False)
    assert asked == [(0, 2**20), (2**20, 2**20), (2 * 2**20, 2**20)]


def test_advice_that_is_not_taken_costs_no_file(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files, "_WINDOW", 2**20)
    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    content = os.urandom(3 * 2**20)
    files.write_file(tmp_path / "a", [content], len(content), in_parallel=False)
    assert (tmp_path / "a").read_bytes() == content
