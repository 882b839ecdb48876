import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import Phase, Signal, mask_text
from trainer_core.journal import Entry, Journal, explain, journal_records, last_run, read
from trainer_core.state import Request


def entry(phase="STEP", first_step=1, step=1, **more):
    usual = {"seconds": 0.5, "next": "EPOCH", "signal": "EPOCH_END", "by": "loop", "why": "its data is used up"}
    return Entry(phase=phase, first_step=first_step, step=step, **{**usual, "rank": 0, "time": 1.0, "run": "r", **more})


def walk(journal, *transitions):
    """Writes transitions: (phase, step, target, signal, request)."""
    journal.open()
    for transition in transitions:
        journal.left(*transition)
    journal.close()


ASKED = Request(Signal.EVAL, "eval_strategy", "every 50 updates")


def test_a_line_is_one_transition_with_author_and_reason(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    journal = Journal(path, rank=2)
    walk(
        journal,
        (Phase.INIT, 0, Phase.EPOCH, Signal.EPOCH_END, None),
        (Phase.EPOCH, 0, Phase.STEP, Signal.READY, None),
        (Phase.STEP, 50, Phase.EVAL, Signal.EVAL, ASKED),
    )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(line) for line in lines] == [list(Entry.__slots__)] * 3
    told = [(line["phase"], line["first_step"], line["step"], line["next"], line["by"], line["rank"]) for line in lines]
    assert told == [
        ("INIT", 0, 0, "EPOCH", "loop", 2),
        ("EPOCH", 0, 0, "STEP", "loop", 2),
        ("STEP", 1, 50, "EVAL", "eval_strategy", 2),
    ]
    assert lines[2]["why"] == "every 50 updates"
    assert list(read(path)) == journal.entries
    assert {line["run"] for line in lines} == {journal.run}


def test_a_stretch_of_step_without_an_update_names_none():
    journal = Journal(None)
    walk(
        journal,
        (Phase.EPOCH, 12, Phase.STEP, Signal.READY, None),
        (Phase.STEP, 12, Phase.EPOCH, Signal.EPOCH_END, None),
    )
    assert (journal.entries[1].first_step, journal.entries[1].step) == (13, 12)
    assert "update 12 was done" not in explain(journal.entries, 12)


def test_seconds_are_kept_by_phase():
    journal = Journal(None)
    walk(
        journal,
        (Phase.STEP, 1, Phase.EVAL, Signal.EVAL, ASKED),
        (Phase.EVAL, 1, Phase.STEP, Signal.READY, None),
        (Phase.STEP, 2, Phase.EPOCH, Signal.EPOCH_END, None),
    )
    assert journal.seconds.keys() == {Phase.STEP, Phase.EVAL}
    assert sum(journal.seconds.values()) == pytest.approx(sum(one.seconds for one in journal.entries), abs=1e-5)


def test_without_a_path_the_account_is_in_memory_only():
    journal = Journal(None)
    walk(journal, (Phase.INIT, 0, Phase.EPOCH, Signal.READY, None))
    assert len(journal.entries) == 1


def test_a_second_run_appends(tmp_path):
    path = tmp_path / "journal.jsonl"
    for _ in range(2):
        walk(Journal(path), (Phase.INIT, 0, Phase.EPOCH, Signal.READY, None))
    assert len({one.run for one in read(path)}) == 2


def test_a_line_that_was_left_half_is_passed_over_and_spoils_no_later_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    walk(Journal(path), (Phase.INIT, 0, Phase.EPOCH, Signal.READY, None))
    with path.open("a") as file:
        file.write('{"phase": "STEP", "first_st')
    walk(Journal(path), (Phase.INIT, 7, Phase.EPOCH, Signal.READY, None))
    assert [one.step for one in read(path)] == [0, 7]


@pytest.mark.parametrize("line", ["", "[]", "3", "null", '{"phase": "STEP"}', '{"unknown": 1}', "\x00\xff", '"text"'])
def test_lines_of_other_kinds_are_passed_over(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    walk(Journal(path), (Phase.INIT, 0, Phase.EPOCH, Signal.READY, None))
    path.write_text(f"{line}\n{path.read_text()}{line}\n", encoding="utf-8")
    assert [one.phase for one in read(path)] == ["INIT"]


def test_a_failed_phase_is_told_with_its_error():
    journal = Journal(None)
    journal.left(Phase.EPOCH, 4, Phase.STEP, Signal.READY, None)
    journal.failed(Phase.STEP, 4, ValueError("boom"))
    last = journal.entries[-1]
    assert (last.phase, last.step, last.next, last.by, last.why) == ("STEP", 4, "", "ValueError", "boom")
    assert explain([last], 4) == "Step 4: The run ended in phase STEP: ValueError: boom."


def test_the_last_run_has_what_it_resumed_and_nothing_before_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    for start in (0, 0, 50):
        walk(Journal(path), (Phase.INIT, start, Phase.EPOCH, Signal.READY, None))
    assert [one.step for one in last_run(path)] == [0, 50]
    assert len({one.run for one in last_run(path)}) == 2
    assert last_run(tmp_path / "none.jsonl") == []


def test_an_explanation_tells_the_updates_then_what_was_asked_and_by_whom():
    entries = [
        entry(first_step=1, step=50, next="EVAL", signal="EVAL", by="eval_strategy", why="every 50 updates"),
        entry("EVAL", 50, 50, next="SAVE", signal="SAVE", by="checkpointing", why="a new best"),
        entry("SAVE", 50, 50, next="STEP", signal="READY", why="nothing else was asked for"),
        entry("STEP", 51, 70, next="EPOCH", signal="STOP", by="max_steps", why="all 70 updates are done"),
        entry("STOP", 70, 70, next="", why="nothing else was asked for"),
    ]
    assert explain(entries, 50) == (
        "Step 50: updates 1 to 50 were done in 0.5 s. Evaluated, asked by eval_strategy: every 50 updates. "
        "Saved, asked by checkpointing: a new best."
    )
    assert explain(entries, 60) == "Step 60: updates 51 to 70 were done in 0.5 s."
    assert explain(entries, 71) == "Step 71: the journal has no transition there."
    assert "all 70 updates are done" in explain(entries, 70)


def test_records_of_a_kind_stand_beside_the_transitions(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", rank=1)
    journal.open()
    journal.left(Phase.STEP, 3, Phase.EVAL, Signal.EVAL, None)
    journal.record("passed_over", 3, {"path": "checkpoint-2", "why": "hf_" + "a" * 34})
    journal.record("other", 3, {})
    (found,) = journal_records(journal.path, "passed_over")
    assert (found.pop("time") > 0, found.pop("run")) == (True, journal.run)
    assert found == {
        "kind": "passed_over",
        "step": 3,
        "rank": 1,
        "path": "checkpoint-2",
        "why": mask_text("hf_" + "a" * 34),
    }
    assert [one.phase for one in read(journal.path)] == ["STEP"]
    assert list(journal_records(tmp_path / "none", "other")) == []


@given(lengths=st.lists(st.integers(0, 5), max_size=8))
def test_folded_stretches_cover_every_update_once(lengths):
    journal, step = Journal(None), 0
    for length in lengths:
        journal.left(Phase.EPOCH, step, Phase.STEP, Signal.READY, None)
        step += length
        journal.left(Phase.STEP, step, Phase.EPOCH, Signal.EPOCH_END, None)
    stretches = [one for one in journal.entries if one.phase == "STEP"]
    assert [n for one in stretches for n in range(one.first_step, one.step + 1)] == list(range(1, step + 1))


KILLED = """
import os, sys, signal
from pathlib import Path
from trainer_core import Phase, Signal, mask_text
from trainer_core.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.open()
for step in range(10):
    journal.left(Phase.STEP, step, Phase.EVAL, Signal.EVAL, None)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_line_is_there_after_kill_9(tmp_path):
    path: Path = tmp_path / "journal.jsonl"
    killed = subprocess.run([sys.executable, "-c", KILLED, path], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [one.step for one in read(path)] == list(range(10))
