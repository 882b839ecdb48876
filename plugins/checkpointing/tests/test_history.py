"""The log history is appended to, shared by links, and what a save writes does not grow with it."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import pytest
import torch

from trainer_core import CheckpointError
from trainer_core_checkpointing import files, history
from trainer_core_checkpointing.history import History, read_rows
from trainer_core_checkpointing.manifest import FileEntry


def rows(number):
    return [{"loss": 1 / (step + 1), "epoch": step / 7, "step": step} for step in range(number)]


def test_rows_come_back_exactly(tmp_path):
    written = [{"loss": math.inf, "worst": math.nan, "list": [1, None, "é\n\u2028"], "n": 10**30, "t": (1, 2)}, {}]
    kept = History(tmp_path)
    kept.append(kept.new_rows(written))
    back = read_rows(kept.file, kept.entry)
    assert math.isnan(back[0].pop("worst"))
    assert math.isnan(written[0].pop("worst"))
    assert back == written


def test_a_value_that_cannot_be_saved_is_kept_as_text(tmp_path):
    kept = History(tmp_path)
    kept.append(kept.new_rows([{"loss": 1.0, "figure": {1, 2}, "tensor": torch.zeros(1)}]))
    assert read_rows(kept.file, kept.entry) == [{"loss": 1.0, "figure": "{1, 2}", "tensor": "tensor([0.])"}]


def test_each_checkpoint_sees_its_own_rows_of_one_file(tmp_path):
    kept, all_rows, entries = History(tmp_path), rows(9), []
    for number in (3, 3, 9):
        kept.append(kept.new_rows(all_rows[:number]))
        kept.link_to(tmp_path / f"link-{len(entries)}")
        entries.append(kept.entry)
    assert [len(read_rows(tmp_path / f"link-{place}", entry)) for place, entry in enumerate(entries)] == [3, 3, 9]
    assert len({os.stat(tmp_path / f"link-{place}").st_ino for place in range(3)}) == 1


def test_a_new_run_begins_a_file_of_its_own(tmp_path):
    first = History(tmp_path)
    first.append(first.new_rows(rows(3)))
    first.link_to(tmp_path / "link")
    second = History(tmp_path)
    second.append(second.new_rows(rows(1)))
    assert len(read_rows(tmp_path / "link", first.entry)) == 3
    assert len(read_rows(second.file, second.entry)) == 1


def test_what_a_failed_write_left_behind_is_written_over(tmp_path):
    kept = History(tmp_path)
    kept.append(kept.new_rows(rows(2)))
    with kept.file.open("ab") as file:
        file.write(b'{"half')
    kept.append(kept.new_rows(rows(4)))
    assert read_rows(kept.file, kept.entry) == rows(4)
    assert kept.file.stat().st_size == kept.size


def test_a_file_that_was_deleted_or_cut_is_written_anew(tmp_path):
    kept = History(tmp_path)
    kept.append(kept.new_rows(rows(4)))
    kept.file.unlink()
    kept.append(kept.new_rows(rows(5)))
    assert read_rows(kept.file, kept.entry) == rows(5)
    kept.file.write_bytes(b"")
    kept.append(kept.new_rows(rows(6)))
    assert read_rows(kept.file, kept.entry) == rows(6)


def test_rows_that_a_user_took_away_are_gone(tmp_path):
    kept = History(tmp_path)
    kept.append(kept.new_rows(rows(4)))
    kept.append(kept.new_rows(rows(2)))
    assert read_rows(kept.file, kept.entry) == rows(2)


def test_a_copy_is_made_where_links_are_not_offered(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(history.os, "link", refuse)
    kept = History(tmp_path)
    kept.append(kept.new_rows(rows(2)))
    kept.link_to(tmp_path / "copy")
    entry = kept.entry
    kept.append(kept.new_rows(rows(3)))
    assert read_rows(tmp_path / "copy", entry) == rows(2)


def test_a_line_that_is_no_row_is_an_error_of_ours(tmp_path):
    (tmp_path / "x").write_bytes(b"{\n")
    sha256 = hashlib.sha256(b"{\n").hexdigest()
    with pytest.raises(CheckpointError, match="x: cannot be read"):
        read_rows(tmp_path / "x", FileEntry(2, sha256))
    with pytest.raises(CheckpointError, match="it has 2 bytes instead of 3"):
        read_rows(tmp_path / "x", FileEntry(3, sha256))


def test_a_file_whose_flush_failed_is_never_gone_on_with(tmp_path, monkeypatch):
    class Failing(files.Calls):
        def flush(self, descriptor):
            raise OSError(5, "Input/output error")

    kept = History(tmp_path)
    kept.append(kept.new_rows(rows(2)))
    kept.link_to(tmp_path / "link")
    entry, before = kept.entry, kept.file.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(files, "calls", Failing())
        with pytest.raises(OSError, match="Input/output error"):
            kept.append(kept.new_rows(rows(3)))
    kept.append(kept.new_rows(rows(4)))
    assert kept.file.stat().st_ino != before
    assert read_rows(kept.file, kept.entry) == rows(4)
    assert read_rows(tmp_path / "link", entry) == rows(2)


class Counting:
    """Logs many rows at first and notes the bytes that this process writes in each save."""

    def __init__(self, number):
        self.number, self.bytes, self.start = number, [], 0

    def on_train_begin(self, trainer):
        trainer.state.log_history.extend(rows(self.number))

    def on_phase(self, trainer, phase):
        if phase.name == "SAVE":
            self.start = bytes_written()

    def on_save(self, trainer):
        self.bytes.append(bytes_written() - self.start)


def bytes_written():
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes through Linux' /proc")
def test_what_a_save_writes_does_not_grow_with_the_rows(small, tmp_path):
    few, many = Counting(10), Counting(20_000)
    for counting in (few, many):
        small.trainer(tmp_path / str(counting.number), counting, save_steps=3).train()
    assert len(few.bytes) == 6
    assert many.bytes[0] > few.bytes[0] + 500_000  # the rows themselves, once
    assert all(abs(one - other) < 200 for one, other in zip(few.bytes[1:], many.bytes[1:], strict=True))
