import math
import os
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest

from trainer_core import SettingsError, hookimpl
from trainer_core_logging import rows as rows_of_the_plugin
from trainer_core_logging.rows import RowFile


def steps(rows):
    return [row["step"] for row in rows if "loss" in row]


def test_the_file_holds_every_logged_row_as_it_is_in_the_history(train, rows):
    trainer = train(logging_steps=5)
    assert rows() == trainer.state.log_history
    assert {"loss", "eval_loss", "train_loss"} <= {name for row in rows() for name in row}


def test_another_run_appends(train, rows):
    first = train(logging_steps=8).state.log_history
    second = train(logging_steps=8).state.log_history
    assert rows() == first + second


def test_the_file_may_have_another_name_or_not_be(train, rows, tmp_path):
    train(logging={"file": "rows.jsonl"})
    assert rows("rows.jsonl")
    assert not (tmp_path / "log.jsonl").exists()
    for path in tmp_path.iterdir():
        path.unlink()
    train(logging={"file": None})
    assert [path.name for path in tmp_path.iterdir()] == [".owner.json", "journal.jsonl"]


def test_a_row_is_in_the_file_when_the_next_hook_fires(train, rows):
    seen = []

    class Reader:
        @hookimpl(trylast=True)
        def on_log(self, trainer):
            seen.append(rows() == trainer.state.log_history)

    train([Reader()], logging_steps=4)
    assert len(seen) > 6
    assert all(seen)


def test_a_row_that_is_logged_outside_training_is_appended(train, rows):
    trainer = train(max_steps=2)
    metrics = trainer.evaluate(metric_key_prefix="later")
    assert rows()[-1].items() >= metrics.items()
    assert rows() == trainer.state.log_history


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        ([1.0, math.nan, {"deep": math.inf}], [1.0, "NaN", {"deep": "Infinity"}]),
        ("Größe \ud800", "Größe \ud800"),
        (Path("somewhere"), "somewhere"),
        ({3: None}, {"3": None}),
    ],
)
def test_whatever_is_logged_is_written_as_strict_json(train, rows, value, written):
    class Odd:
        def on_train_begin(self, trainer):
            trainer.log({"odd": value})

    train([Odd()], max_steps=1)
    assert rows()[0]["odd"] == written


def test_a_loss_that_is_not_finite_is_written_as_what_it_is(train, rows):
    train(learning_rate=1e38, max_grad_norm=0.0, nan_policy="ignore", logging_steps=1, max_steps=4)
    assert "NaN" in [row.get("loss") for row in rows()]


def test_a_line_that_was_left_half_is_cut_off(train, rows, tmp_path):
    tmp_path.joinpath("log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    trainer = train(max_steps=1)
    assert rows() == [{"step": 1}, *trainer.state.log_history]


@pytest.mark.parametrize("size", [10, 4096, 5000, 20000])
def test_half_a_line_of_any_length_is_cut_off(tmp_path, size):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"x" * size)
    file = RowFile()
    file.open(path)
    assert path.read_bytes() == b""
    file.write({"a": 1})
    file.close()
    path.write_bytes(path.read_bytes() + b"x" * size)
    file.open(path)
    file.close()
    assert path.read_bytes() == b'{"a": 1}\n'


@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_a_link_or_pipe_in_place_of_the_file_is_refused_and_not_written_to(kind, train, tmp_path):
    if kind == "a link":
        tmp_path.joinpath("log.jsonl").symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(SettingsError, match=r"logging\.file: cannot be opened "):
        train()
    assert not tmp_path.joinpath("outside").exists()


def test_rows_are_not_moved_to_where_a_link_leads(tmp_path):
    path, aside = tmp_path / "log.jsonl", tmp_path / "log-cut.jsonl"
    path.write_text('{"step": 1}\n')
    aside.symlink_to(tmp_path / "outside")
    with pytest.raises(SettingsError) as caught:
        RowFile().open(path, begins_again=True)
    (problem,) = caught.value.problems
    what = "cannot be opened (Too many levels of symbolic links)"
    assert problem == f"logging.file: {what}, got {str(aside)!r}. Name another one, or None."
    assert not tmp_path.joinpath("outside").exists()
    assert path.read_text() == '{"step": 1}\n'


def test_a_file_that_cannot_be_opened_is_told_before_training(train, tmp_path):
    tmp_path.joinpath("log.jsonl").mkdir()
    with pytest.raises(SettingsError) as caught:
        train()
    (problem,) = caught.value.problems
    path = str(tmp_path / "log.jsonl")
    assert problem == f"logging.file: cannot be opened (Is a directory), got {path!r}. Name another one, or None."


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_told_once_and_ends_no_run(train, monkeypatch, caplog):
    monkeypatch.setattr(rows_of_the_plugin, "_opened", lambda path: FileIO("/dev/full", "ab+"))
    assert train(logging_steps=1).state.global_step == 24
    told = [record.getMessage() for record in caplog.records if record.name == "trainer_core.logging"]
    assert told == ["/dev/full: cannot be written (No space left on device). Rows are no longer written."]


def test_a_flush_that_fails_is_told_once_and_ends_no_run(train, tmp_path, caplog, monkeypatch):
    def failing(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("trainer_core_logging.rows.os.fsync", failing)
    assert train(logging_steps=1).state.global_step == 24
    told = [record.getMessage() for record in caplog.records if record.name == "trainer_core.logging"]
    assert told == [f"{tmp_path / 'log.jsonl'}: cannot be written (Input/output error). Rows are no longer written."]


def test_rows_are_durable_when_the_run_ends(train, tmp_path, monkeypatch):
    sizes, fsync = [], os.fsync

    def flush(descriptor):
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr("trainer_core_logging.rows.os.fsync", flush)
    train(logging_steps=1)
    assert sizes[-1] == (tmp_path / "log.jsonl").stat().st_size


KILLED = """
import os, signal, sys
from trainer_core.testing import run
class Killer:
    def on_step_end(self, trainer):
        if trainer.state.global_step == 9:
            os.kill(os.getpid(), signal.SIGKILL)
run([Killer()], installed=["logging"], output_dir=sys.argv[1], logging_steps=2)
"""


def test_no_row_is_lost_when_the_process_is_killed(rows, tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False, stderr=subprocess.DEVNULL)
    assert steps(rows()) == [2, 4, 6, 8]
