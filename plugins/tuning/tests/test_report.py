"""What a search tells and leaves: lines, a table on the screen and as a file, a picture."""

from __future__ import annotations

import json
import logging
from xml.etree import ElementTree

import pytest

from trainer_core_tuning import report


def two(trial):
    rate = trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)
    return {"learning_rate": rate, "optim": trial.suggest_categorical("optim", ["sgd", "adamw_torch"])}


def test_the_table_has_a_row_a_trial(small, space, rows, study):
    small(tuning={"pruner": "none"}, eval_strategy="no").hyperparameter_search(two, n_trials=2)
    trials = study().trials
    assert rows() == [
        {
            "number": str(trial.number),
            "run": f"run-{trial.number}",
            "state": "COMPLETE",
            "objective": str(trial.value),
            "seconds": str(round(trial.duration.total_seconds(), 2)),
            "learning_rate": str(trial.params["learning_rate"]),
            "optim": trial.params["optim"],
            "why": "",
        }
        for trial in trials
    ]


def test_several_objectives_have_a_column_each(small, space, rows):
    small().hyperparameter_search(space, lambda metrics: [1.0, 2.0], n_trials=1, direction=["minimize", "maximize"])
    assert [(row["objective_0"], row["objective_1"]) for row in rows()] == [("1.0", "2.0")]


def test_the_table_and_the_lines_are_printed(small, space, capsys):
    values = iter([0.5, 0.25])
    trainer = small(tuning={"pruner": "none"}, eval_strategy="no")
    trainer.hyperparameter_search(space, lambda metrics: next(values), n_trials=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("search: trial 0: objective 0.5, best so far 0.5 of trial 0 (1 of 2 done); learning")
    assert lines[1].startswith("search: trial 1: objective 0.25, best so far 0.25 of trial 1 (2 of 2 done); learn")
    cells = [line.split() for line in lines if "complete" in line]
    assert [row[1:4] for row in cells] == [["0", "│", "complete"], ["*", "1", "│"]]


def test_nothing_is_printed_but_logged_without_a_report(small, space, capsys, caplog):
    caplog.set_level(logging.INFO, "trainer_core.tuning")
    small(tuning={"report": False}).hyperparameter_search(space, n_trials=1)
    assert capsys.readouterr().out == ""
    assert any(record.getMessage().startswith("trial 0: objective ") for record in caplog.records)


def test_what_a_search_leaves_in_the_folder(small, space, tmp_path):
    small().hyperparameter_search(space, n_trials=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".owner.json", "run-0", "trials.csv", "tuning.db",
    ]  # fmt: skip
    small(output_dir=tmp_path / "bare", tuning={"table": None}).hyperparameter_search(space, n_trials=1)
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [".owner.json", "run-0", "tuning.db"]


def test_trials_keep_checkpoints_only_as_the_settings_say(small, space, tmp_path):
    options = {"installed": ["checkpointing"], "save_strategy": "epoch", "save_total_limit": 1}
    small(**options).hyperparameter_search(space, n_trials=2)
    small(output_dir=tmp_path / "none", installed=["checkpointing"], save_strategy="no") \
        .hyperparameter_search(space, n_trials=1)  # fmt: skip
    assert sorted(path.parent.name + "/" + path.name for path in tmp_path.glob("*/run-*/checkpoint-*")) == [
        "run-0/checkpoint-12", "run-1/checkpoint-12",
    ]  # fmt: skip


def test_the_picture_shows_trials_and_parameters(small, tmp_path):
    small(tuning={"plot": "tuning.svg"}).hyperparameter_search(two, n_trials=4)
    text = (tmp_path / "out" / "tuning.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    for words in ("trials", "best so far", "learning_rate: importance", "optim: importance", "adamw_torch"):
        assert words in text


def test_a_picture_of_several_objectives_has_a_row_for_each(small, space, tmp_path):
    values = iter([(1.0, 2.0), (2.0, float("inf")), (300.0, 1.0)])
    small(tuning={"plot": "p.png"}, eval_strategy="no").hyperparameter_search(
        space, lambda metrics: next(values), n_trials=3, direction=["minimize", "minimize"]
    )
    assert (tmp_path / "out" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_picture_is_missed_and_nothing_fails(small, space, told, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    small(tuning={"plot": "tuning.svg"}).hyperparameter_search(space, n_trials=1)
    assert told() == [
        f"{tmp_path / 'out' / 'tuning.svg'}: is not drawn, matplotlib is not installed. "
        "Install trainer-core-tuning[plot], or set tuning={'plot': None}."
    ]


def test_a_picture_that_cannot_be_drawn_ends_no_search(small, told, tmp_path):
    def odd(trial):
        trial.suggest_categorical("prompt", ["$^$"])  # matplotlib takes it for a formula, and a wrong one
        return {}

    assert small(tuning={"plot": "tuning.svg"}).hyperparameter_search(odd, n_trials=1).run_id == "0"
    assert told()[0].startswith(f"{tmp_path / 'out' / 'tuning.svg'}: cannot be drawn, got ValueError: ")
    assert told()[0].endswith(" Set tuning={'plot': None}.")


def test_a_disk_that_fails_ends_no_search(small, space, told, tmp_path):
    (tmp_path / "out" / "trials.csv").mkdir(parents=True)
    assert small().hyperparameter_search(space, n_trials=1).run_id == "0"
    assert told()[0].startswith(f"{tmp_path / 'out'}: the trials cannot be written there, ")


def test_the_database_keeps_what_each_trial_was(small, space, study):
    small().hyperparameter_search(space, n_trials=1)
    (trial,) = study().trials
    assert sorted(trial.user_attrs) == ["metrics", "run", "settings", "space"]
    assert (trial.user_attrs["settings"], trial.user_attrs["space"]) == (trial.params, ["learning_rate"])
    assert json.dumps(trial.user_attrs["metrics"], allow_nan=False)


@pytest.mark.parametrize("failing", [True, False])
def test_the_table_is_written_however_a_search_ends(failing, small, space, rows):
    class Breaking:
        def on_step_end(self, trainer):
            if trainer.state.trial_name == "run-1":
                raise (OSError if failing else KeyboardInterrupt)("the end")

    with pytest.raises(OSError if failing else KeyboardInterrupt):
        small(given={"plugins": [Breaking()]}).hyperparameter_search(space, n_trials=2)
    name = "OSError" if failing else "KeyboardInterrupt"
    assert [(row["state"], row["why"]) for row in rows()] == [("COMPLETE", ""), ("FAIL", f"{name}: the end")]


def test_an_outcome_that_is_kept_stays_when_telling_it_fails(small, space, states, monkeypatch):
    class Closed(report.Report):
        def say(self, line):
            raise BrokenPipeError("nobody reads")

    monkeypatch.setattr("trainer_core_tuning.search.Report", Closed)
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        small().hyperparameter_search(space, n_trials=2)
    assert states() == ["COMPLETE"]
