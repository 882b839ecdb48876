import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import Trainer
from trainer_core_logging.rows import RowFile


def steps(rows):
    return [row["step"] for row in rows if "loss" in row]


class Memory:
    """Keeps a checkpoint in memory at one step, and gives it back to the next run."""

    def __init__(self, at=10):
        self.at = at
        self.kept = None

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.at and self.kept is None:
            weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            state = trainer.state_dict()
            kept = {**copy.deepcopy(state), "plugins": json.loads(json.dumps(state["plugins"]))}
            self.kept = weights, kept, list(trainer.state.log_history)
            self.random = torch.get_rng_state()

    def read_checkpoint(self, trainer):
        weights, state, history = self.kept
        trainer.model.load_state_dict(weights)
        trainer.load_state_dict(state)
        trainer.state.log_history[:] = history
        torch.set_rng_state(self.random)
        return Path("memory")


@pytest.fixture
def resume(train, monkeypatch):
    """Gives a function that trains on from a checkpoint in memory."""

    def go(memory, **options):
        plain = Trainer.train
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train", lambda self: plain(self, resume_from_checkpoint=True))
            return train([memory], **options)

    return go


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.endswith(("runtime", "_per_second"))} for row in rows]


def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(train, resume, rows, tmp_path):
    train(logging_steps=4)
    whole = without_times(rows())
    tmp_path.joinpath("log.jsonl").unlink()
    memory = Memory(at=10)
    train([memory], logging_steps=4, max_steps=24)
    resume(memory, logging_steps=4, max_steps=24)
    assert without_times(rows()) == whole


def test_rows_before_the_checkpoint_are_not_touched(train, resume, tmp_path):
    memory = Memory(at=10)
    train([memory], logging_steps=1)
    path = tmp_path / "log.jsonl"
    offset = memory.kept[1]["plugins"]["logging"]["offset"]
    before, inode = path.read_bytes()[:offset], path.stat().st_ino
    resume(memory, logging_steps=1)
    assert path.read_bytes()[:offset] == before
    assert path.stat().st_ino == inode


def test_a_run_that_is_resumed_elsewhere_gets_the_rows_before_it(train, resume, rows, tmp_path):
    memory = Memory(at=10)
    train([memory], logging_steps=4)
    tmp_path.joinpath("log.jsonl").unlink()
    trainer = resume(memory, logging_steps=4)
    assert rows() == trainer.state.log_history
    assert steps(rows()) == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize("change", ["shorter", "other"])
def test_a_file_that_the_checkpoint_did_not_know_is_not_cut(train, resume, rows, tmp_path, caplog, change):
    memory = Memory(at=10)
    train([memory], logging_steps=4)
    path = tmp_path / "log.jsonl"
    foreign = '{"step": 1}\n' if change == "shorter" else '{"of": "another run"}\n' * 100
    path.write_text(foreign)
    trainer = resume(memory, logging_steps=4)
    assert path.read_text().startswith(foreign)
    assert steps(rows()) == [12, 16, 20, 24]
    assert "is not the file that the checkpoint knew, rows after step 10 may stand in it twice." in caplog.text
    assert trainer.state.global_step == 24


def test_rows_that_are_cut_off_are_counted_and_kept_aside(train, resume, tmp_path, caplog):
    memory = Memory(at=10)
    train([memory], logging_steps=4, eval_strategy="no")
    resume(memory, logging_steps=4, eval_strategy="no")
    assert "5 rows after the checkpoint of step 10 are moved to log-cut.jsonl; what they tell of is done" in caplog.text
    assert len((tmp_path / "log-cut.jsonl").read_bytes().splitlines()) == 5


def test_a_trainer_that_trains_again_appends(tmp_path, rows):
    path = tmp_path / "log.jsonl"
    file = RowFile()
    file.load_state_dict({"offset": 0, "tail_crc32": 0})
    for number in range(2):
        file.open(path)
        file.write({"step": number})
        file.forget()
    assert rows() == [{"step": 0}, {"step": 1}]


def test_state_before_and_after_a_file_is_open(tmp_path):
    file, fresh = RowFile(), RowFile()
    assert file.state_dict() == {"offset": None, "tail_crc32": None}
    file.open(tmp_path / "log.jsonl")
    file.write({"step": 1})
    state = file.state_dict()
    assert state["offset"] == len('{"step": 1}\n')
    file.close()
    assert file.state_dict() == state
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state


@given(st.lists(st.dictionaries(st.text(), st.floats() | st.text() | st.integers()), max_size=5), st.integers(0, 5))
def test_any_rows_are_cut_back_to_any_state(tmp_path_factory, written, keep):
    path = tmp_path_factory.mktemp("rows") / "log.jsonl"
    file = RowFile()
    file.open(path)
    for row in written[:keep]:
        file.write(row)
    state, kept = file.state_dict(), path.read_bytes()
    for row in written[keep:]:
        file.write(row)
    file.close()
    file.load_state_dict(state)
    file.open(path, written[:keep])
    file.close()
    assert path.read_bytes() == kept
    assert kept.count(b"\n") == len(written[:keep])


def test_rows_of_a_run_that_had_saved_nothing_are_kept_aside_when_it_begins_again(resume, rows, tmp_path, caplog):
    class NothingSaved:
        def read_checkpoint(self, source):
            return None

    before = b'{"step": 4}\n{"step": 8}\n'
    (tmp_path / "log.jsonl").write_bytes(before)
    resume(NothingSaved(), logging_steps=4, eval_strategy="no")
    assert steps(rows()) == [4, 8, 12, 16, 20, 24]
    assert (tmp_path / "log-cut.jsonl").read_bytes() == before
    assert "2 rows of a run that had saved nothing are moved to log-cut.jsonl; what they tell of is" in caplog.text
