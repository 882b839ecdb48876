"""A finished run stays finished: resuming it trains nothing, logs nothing, and changes no file but the journal."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from trainer_core import Signal

CASES = {
    "plain": {"save_steps": 5},
    "evaluated": {"save_steps": 5, "eval_strategy": "steps", "eval_steps": 4},
    "epochs": {"save_strategy": "epoch", "eval_strategy": "epoch"},
    "evaluated at the end": {"save_steps": 6, "eval_strategy": "epoch"},
    "fractional": {"num_train_epochs": 1.6, "save_steps": 4, "eval_strategy": "epoch"},
    "best": {"save_steps": 4, "eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True},
    "by steps": {"max_steps": 11, "save_steps": 4},
}
OF_A_CALL = (".owner.json", "journal.jsonl")


class Stop:
    name = "stop"

    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.step:
            trainer.request(Signal.STOP, by="stop", why="enough")


class Heard:
    """Notes every hook of training that is told."""

    def __init__(self):
        self.hooks = []

    def on_train_begin(self):
        self.hooks.append("on_train_begin")

    def on_step_begin(self):
        self.hooks.append("on_step_begin")

    def on_epoch_end(self):
        self.hooks.append("on_epoch_end")

    def on_log(self):
        self.hooks.append("on_log")

    def on_save(self):
        self.hooks.append("on_save")

    def on_train_end(self):
        self.hooks.append("on_train_end")


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in OF_A_CALL]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_resuming_a_finished_run_changes_nothing(case, times, small, tmp_path, assert_same):
    whole = small.trainer(tmp_path, **CASES[case])
    output = whole.train()
    before = contents(tmp_path)
    for _ in range(times):
        heard, dataset = Heard(), small.Augmented(22)
        again = small.trainer(tmp_path, heard, dataset=dataset, **CASES[case])
        assert again.train(resume_from_checkpoint=True) == output
        assert (heard.hooks, dataset.loaded, again.outcome, again.exit_code) == ([], [], "completed", 0)
        expected, actual = small.outcome(whole), small.outcome(again)
        expected["patience"] = actual["patience"] = None  # what it saw after the last save is of no use any more
        assert_same(expected, actual)
        assert again.state.log_history == whole.state.log_history
    assert contents(tmp_path) == before


def test_a_run_that_was_stopped_stays_so(small, tmp_path):
    whole = small.trainer(tmp_path, Stop(7), save_steps=3)
    whole.train()
    before = contents(tmp_path)
    again = small.trainer(tmp_path, save_steps=3)
    again.train(resume_from_checkpoint=True)
    assert (again.outcome, again.stop_request.by, again.stop_request.why) == ("stopped", "stop", "enough")
    assert (again.state.global_step, contents(tmp_path)) == (7, before)


def test_a_larger_number_of_steps_lets_a_finished_run_go_on(small, tmp_path):
    small.trainer(tmp_path, max_steps=6, save_steps=3).train()
    again = small.trainer(tmp_path, max_steps=9, save_steps=3)
    again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, again.outcome) == (9, "completed")
    assert json.loads((tmp_path / ".finished.json").read_text())["counters"]["global_step"] == 9


def test_the_end_is_made_up_for_where_a_run_died_before_its_mark(small, tmp_path, assert_same):
    made = CASES["evaluated at the end"]
    whole = small.trainer(tmp_path / "whole", **made)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / ".finished.json").unlink()
    again = small.trainer(tmp_path / "cut", **made)
    again.train(resume_from_checkpoint=True)
    assert_same(small.outcome(whole), small.outcome(again))
    steps = [row["step"] for row in again.state.log_history if "eval_loss" in row]
    assert steps == [6, 12, 18]
    assert (tmp_path / "cut" / ".finished.json").is_file()


def test_no_row_is_doubled_where_the_end_was_reached_without_a_save(small, tmp_path, assert_same):
    made = {"save_steps": 6, "eval_strategy": "epoch"}
    small.trainer(tmp_path, **made).train()
    (tmp_path / ".finished.json").unlink()
    second = small.trainer(tmp_path, **made)  # from the last checkpoint to the end: nothing is saved
    second.train(resume_from_checkpoint=True)
    third = small.trainer(tmp_path, **made)
    third.train(resume_from_checkpoint=True)
    assert third.finished is not None
    assert third.state.log_history == second.state.log_history


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe", None])
def test_a_damaged_mark_is_passed_over_and_said(damage, small, tmp_path, caplog):
    small.trainer(tmp_path, save_steps=6).train()
    mark = tmp_path / ".finished.json"
    content = mark.read_bytes()
    mark.write_bytes(content.replace(b'"completed"', b'"completes"') if damage is None else damage)
    again = small.trainer(tmp_path, save_steps=6)
    again.train(resume_from_checkpoint=True)
    assert any(record.getMessage().startswith(".finished.json: is passed over") for record in caplog.records)
    assert (again.outcome, again.state.global_step) == ("completed", 18)
    assert json.loads(mark.read_text())["outcome"] == "completed"


def test_a_folder_named_like_the_mark_is_left_alone(small, tmp_path, caplog):
    small.trainer(tmp_path, save_steps=5).train()
    (tmp_path / ".finished.json").unlink()
    (tmp_path / ".finished.json").mkdir()
    again = small.trainer(tmp_path, save_steps=5)
    again.train(resume_from_checkpoint=True)
    assert again.outcome == "completed"
    assert "cannot be written, [Errno 21] Is a directory" in caplog.text


def test_a_mark_of_another_run_means_nothing(small, tmp_path):
    small.trainer(tmp_path / "one", max_steps=6, save_steps=6).train()
    small.trainer(tmp_path / "other", small.Cut(6), max_steps=6, save_steps=6).train()
    shutil.copy(tmp_path / "one" / ".finished.json", tmp_path / "other" / ".finished.json")
    heard = Heard()
    small.trainer(tmp_path / "other", heard, max_steps=6, save_steps=6).train(resume_from_checkpoint=True)
    assert heard.hooks[-1] == "on_train_end"


def test_a_run_that_begins_anew_takes_the_mark_off(small, tmp_path):
    small.trainer(tmp_path, max_steps=6, save_steps=6).train()
    small.trainer(tmp_path, small.Cut(2), max_steps=6, save_steps=6).train()
    assert not (tmp_path / ".finished.json").exists()


def test_an_older_checkpoint_that_is_named_is_trained_from(small, tmp_path):
    small.trainer(tmp_path, max_steps=6, save_steps=3).train()
    again = small.trainer(tmp_path, max_steps=6, save_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert (again.state.global_step, again.finished, again.outcome) == (6, None, "completed")


def test_a_run_that_was_interrupted_is_not_finished(small, tmp_path):
    small.trainer(tmp_path, small.Cut(12), save_steps=6).train()
    assert not (tmp_path / ".finished.json").exists()
    heard = Heard()
    again = small.trainer(tmp_path, heard, save_steps=6)
    again.train(resume_from_checkpoint=True)
    assert (heard.hooks[-1], again.outcome) == ("on_train_end", "completed")


def test_a_mark_that_cannot_be_written_is_said_and_the_end_is_done_again(
    small, tmp_path, monkeypatch, caplog, assert_same
):
    def failing(path, content):
        raise OSError(28, "No space left on device", str(path))

    whole = small.trainer(tmp_path, save_steps=5)
    with monkeypatch.context() as patch:
        patch.setattr("trainer_core_checkpointing.closing.replace_file", failing)
        whole.train()
    assert whole.outcome == "completed"
    assert ".finished.json: cannot be written, [Errno 28] No space left on device" in caplog.text
    assert not (tmp_path / ".finished.json").exists()
    again = small.trainer(tmp_path, save_steps=5)
    again.train(resume_from_checkpoint=True)
    assert_same(small.outcome(whole), small.outcome(again))
