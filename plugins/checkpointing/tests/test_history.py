"""The log history is appended to, shared by links, and what a save writes does not grow with it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from trainer_core import CheckpointError
from trainer_core_checkpointing import history
from trainer_core_checkpointing.history import History, read_rows


def rows(number):
    return [{"loss": 1 / (step + 1), "epoch": step / 7, "step": step} for step in range(number)]


def test_rows_come_back_exactly(tmp_path):
    written = [{"loss": math.inf, "worst": math.nan, "list": [1, None, "é\n\u2028"], "n": 10**30, "t": (1, 2)}, {}]
    kept = History(tmp_path)
    kept.extend_to(written)
    back = read_rows(kept.file, kept.size)
    assert math.isnan(back[0].pop("worst"))
    assert math.isnan(written[0].pop("worst"))
    assert back == written


def test_a_value_that_cannot_be_saved_is_kept_as_text(tmp_path):
    kept = History(tmp_path)
    kept.extend_to([{"loss": 1.0, "figure": {1, 2}, "tensor": torch.zeros(1)}])
    assert read_rows(kept.file, kept.size) == [{"loss": 1.0, "figure": "{1, 2}", "tensor": "tensor([0.])"}]


def test_each_checkpoint_sees_its_own_rows_of_one_file(tmp_path):
    kept, all_rows, sizes = History(tmp_path), rows(9), []
    for number in (3, 3, 9):
        kept.extend_to(all_rows[:number])
        kept.link_to(tmp_path / f"link-{len(sizes)}")
        sizes.append(kept.size)
    assert [len(read_rows(tmp_path / f"link-{place}", size)) for place, size in enumerate(sizes)] == [3, 3, 9]
    assert len({os.stat(tmp_path / f"link-{place}").st_ino for place in range(3)}) == 1


def test_a_new_run_begins_a_file_of_its_own(tmp_path):
    first = History(tmp_path)
    first.extend_to(rows(3))
    first.link_to(tmp_path / "link")
    second = History(tmp_path)
    second.extend_to(rows(1))
    assert len(read_rows(tmp_path / "link", first.size)) == 3
    assert len(read_rows(second.file, second.size)) == 1


def test_what_a_failed_write_left_behind_is_written_over(tmp_path):
    kept = History(tmp_path)
    kept.extend_to(rows(2))
    with kept.file.open("ab") as file:
        file.write(b'{"half')
    kept.extend_to(rows(4))
    assert read_rows(kept.file, kept.size) == rows(4)
    assert kept.file.stat().st_size == kept.size


def test_a_file_that_was_deleted_or_cut_is_written_anew(tmp_path):
    kept = History(tmp_path)
    kept.extend_to(rows(4))
    kept.file.unlink()
    kept.extend_to(rows(5))
    assert read_rows(kept.file, kept.size) == rows(5)
    kept.file.write_bytes(b"")
    kept.extend_to(rows(6))
    assert read_rows(kept.file, kept.size) == rows(6)


def test_rows_that_a_user_took_away_are_gone(tmp_path):
    kept = History(tmp_path)
    kept.extend_to(rows(4))
    kept.extend_to(rows(2))
    assert read_rows(kept.file, kept.size) == rows(2)


def test_a_copy_is_made_where_links_are_not_offered(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(history.os, "link", refuse)
    kept = History(tmp_path)
    kept.extend_to(rows(2))
    kept.link_to(tmp_path / "copy")
    kept.extend_to(rows(3))
    assert read_rows(tmp_path / "copy", (tmp_path / "copy").stat().st_size) == rows(2)


def test_a_line_that_is_no_row_is_an_error_of_ours(tmp_path):
    (tmp_path / "x").write_bytes(b"{\n")
    with pytest.raises(CheckpointError, match="x: cannot be read"):
        read_rows(tmp_path / "x", 2)
    with pytest.raises(CheckpointError, match="it has 2 of 3 bytes"):
        read_rows(tmp_path / "x", 3)


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
