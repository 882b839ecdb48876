from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from trainer_core import Signal
from trainer_core.journal import read

CHILD = """
import sys
import time
import torch
from torch import nn
from torch.utils.data import TensorDataset
from trainer_core import Trainer, TrainingArguments

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return {"loss": self.head(x).square().mean(), "logits": self.head(x)}

class Hanging:
    def on_step_end(self, trainer):
        if trainer.state.global_step == 6:
            print("hanging", flush=True)
            time.sleep(600)

data = TensorDataset(torch.ones(40, 4))
args = TrainingArguments(
    sys.argv[1], eval_strategy="steps", eval_steps=2, per_device_train_batch_size=4,
    block_plugins=["logging", "console", "checkpointing", "hub_push", "replay", "tuning"],
)
Trainer(Model(), args, train_dataset=data, eval_dataset=data, plugins=[Hanging()]).train()
"""


def lines(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def walk(entries):
    return [(entry.phase, entry.first_step, entry.step, entry.next, entry.by, entry.why) for entry in entries]


def unmeasured(text):
    return re.sub(r"in [\d.e+-]+ s\.", "in N s.", text)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Gives the folder of a real process that was killed with -9 in its sixth update; not to be written to."""
    folder = tmp_path_factory.mktemp("killed")
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "hanging\n"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    return folder


def test_the_journal_of_a_killed_process_tells_every_transition_and_is_explained(killed, make_trainer):
    assert walk(read(killed / "journal.jsonl")) == [
        ("INIT", 0, 0, "EPOCH", "loop", "no epoch is open yet"),
        ("EPOCH", 0, 0, "STEP", "loop", "nothing else was asked for"),
        ("STEP", 1, 2, "EVAL", "eval_strategy", "every 2 updates"),
        ("EVAL", 2, 2, "STEP", "loop", "nothing else was asked for"),
        ("STEP", 3, 4, "EVAL", "eval_strategy", "every 2 updates"),
        ("EVAL", 4, 4, "STEP", "loop", "nothing else was asked for"),
    ]
    after = make_trainer(output_dir=killed)
    assert unmeasured(after.explain(4)) == (
        "Step 4: updates 3 to 4 were done in N s. Evaluated, asked by eval_strategy: every 2 updates."
    )
    assert unmeasured(after.explain(3)) == "Step 3: updates 3 to 4 were done in N s."
    assert after.explain(6) == "Step 6: the journal has no transition there."


def test_a_line_that_was_left_half_is_passed_over_and_the_next_run_begins_its_own(killed, make_trainer, tmp_path):
    path = tmp_path / "journal.jsonl"
    shutil.copy(killed / "journal.jsonl", path)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"phase": "STEP", "first_st')
    trainer = make_trainer(output_dir=tmp_path, max_steps=1)
    trainer.train()
    entries = list(read(path))
    assert [entry.phase for entry in entries[6:]] == ["INIT", "EPOCH", "STEP", "EPOCH", "STOP"]
    assert {entry.run for entry in entries[6:]} == {trainer.running.loop.journal.run}
    assert entries[0].run != entries[-1].run


def test_every_line_is_one_json_object_with_the_same_fields(make_trainer, tmp_path):
    before = time.time()
    make_trainer(eval_strategy="epoch").train()
    written = lines(tmp_path / "run")
    fields = ["phase", "first_step", "step", "seconds", "next", "signal", "by", "why", "rank", "time", "run"]
    assert [list(line) for line in written] == [fields] * len(written)
    assert [line["phase"] for line in written] == ["INIT", "EPOCH", "STEP", "EPOCH", "EVAL", "EPOCH", "STOP"]
    assert {line["rank"] for line in written} == {0}
    assert all(before - 1 <= line["time"] <= time.time() + 1 for line in written)


def test_runs_of_updates_are_folded_into_one_line(make_trainer, tmp_path):
    make_trainer(num_train_epochs=2).train()
    steps = [(line["first_step"], line["step"]) for line in lines(tmp_path / "run") if line["phase"] == "STEP"]
    assert steps == [(1, 10), (11, 20)]


def test_the_author_and_the_reason_of_a_request_stand_in_the_journal(make_trainer, acting, writer, tmp_path):
    def ask(trainer):
        if trainer.state.global_step == 3:
            trainer.request(Signal.SAVE, by="mine", why="a ü of a reason")
            trainer.request(Signal.STOP, by="other", why="enough")

    trainer = make_trainer(given={"plugins": [acting("on_step_end", ask), writer]})
    trainer.train()
    written = [
        (line["phase"], line["next"], line["signal"], line["by"], line["why"]) for line in lines(tmp_path / "run")
    ]
    assert written[2:] == [
        ("STEP", "SAVE", "SAVE", "mine", "a ü of a reason"),
        ("SAVE", "EPOCH", "STOP", "other", "enough"),
        ("EPOCH", "STOP", "STOP", "other", "enough"),
        ("STOP", "", "READY", "loop", "nothing else was asked for"),
    ]
    assert unmeasured(trainer.explain(3)) == (
        "Step 3: updates 1 to 3 were done in N s. Saved, asked by mine: a ü of a reason. "
        "Left the epoch, asked by other: enough. Stopped, asked by other: enough. "
        "The run ended."
    )


def test_an_error_is_the_last_line_of_a_run_that_failed(make_trainer, acting, tmp_path):
    def fail(trainer):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError):
        make_trainer(given={"plugins": [acting("on_step_end", fail)]}).train()
    last = lines(tmp_path / "run")[-1]
    assert (last["phase"], last["step"], last["next"], last["by"], last["why"]) == (
        "STEP",
        1,
        "",
        "ZeroDivisionError",
        "mine",
    )


def test_the_seconds_of_the_phases_add_up_to_the_run(make_trainer):
    trainer = make_trainer(num_train_epochs=2, eval_strategy="epoch")
    begun = time.perf_counter()
    trainer.train()
    elapsed = time.perf_counter() - begun
    seconds = trainer.running.loop.journal.seconds
    assert sum(seconds.values()) <= elapsed
    assert {phase.name for phase in seconds} == {"INIT", "EPOCH", "STEP", "EVAL", "STOP"}


def test_a_folder_without_a_journal_explains_nothing(make_trainer):
    assert make_trainer().explain(3) == "Step 3: the journal has no transition there."
