"""Random sequences of interrupts, failures, kills, saves and damage, each followed by a resume, against the plain run.

`CHAOS_EXAMPLES` sets how many sequences are tried.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from trainer_core import CheckpointError, Phase, Signal
from trainer_core_checkpointing.manifest import verify

EXAMPLES = int(os.environ.get("CHAOS_EXAMPLES", "25"))
OPTIONS = {
    "save_steps": 4, "eval_strategy": "steps", "eval_steps": 3, "save_total_limit": 3, "load_best_model_at_end": True,
}  # fmt: skip
LAST = 18
HOOKS = (
    "on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log", "on_prediction_step",
    "on_evaluate", "on_eval_end", "on_save", "on_epoch_begin", "on_epoch_end", "on_phase",
)  # fmt: skip


class PowerCut(BaseException):
    """Ends the run at once; nothing more is saved."""


def acting(hook, step, act):
    """Gives a plugin that acts once, in `hook`, from update `step` on."""
    done = []

    def call(self, trainer):
        if trainer.state.global_step >= step and not done:
            done.append(trainer.state.global_step)
            act(trainer)

    return type("Acting", (), {"name": "acting", hook: call})()


def interrupt(trainer):
    trainer.request(Signal.SAVE, by="chaos", why="a draw")
    trainer.request(Signal.STOP, by="chaos", why="a draw", interrupt=True)


def save(trainer):
    trainer.request(Signal.SAVE, by="chaos", why="a draw")


def fail(trainer):
    raise LookupError("a draw")


def kill(trainer):
    raise PowerCut


class Announced:
    """Checks a checkpoint when it is announced, and remembers it."""

    def __init__(self):
        self.checkpoints = []

    def on_save(self, checkpoint):
        verify(checkpoint)
        self.checkpoints.append(checkpoint)


def sequence_of(chance):
    """Gives up to six events: (act, hook, update), or (None, place, bit) for damage."""
    sequence = []
    for _ in range(chance.randint(1, 6)):
        act = chance.choice((interrupt, save, fail, kill, None))
        if act is None:
            sequence.append((None, chance.randint(0, 2**16), chance.randint(0, 7)))
        else:
            hooks = HOOKS if act in (fail, kill) else ("on_step_begin", "on_step_end")
            sequence.append((act, chance.choice(hooks), chance.randint(0, LAST)))
    return sequence


def is_valid(checkpoint):
    try:
        verify(checkpoint)
    except CheckpointError:
        return False
    return True


def valid(folder):
    """Gives the valid checkpoints, oldest first."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return [path for path in found if is_valid(path)]


def damage(folder, place, bit):
    """Flips a bit of the newest checkpoint, where an older one is whole."""
    there = valid(folder)
    if len(there) > 1:
        files = sorted(path for path in there[-1].rglob("*") if path.is_file() and path.name != "history.jsonl")
        file = files[place % len(files)]
        content = bytearray(file.read_bytes())
        content[place % len(content)] ^= 1 << bit
        file.unlink()  # the history's file is shared by all checkpoints
        file.write_bytes(content)


def trained(small, folder, *plugins):
    """Resumes; gives the trainer, whatever ended it."""
    before, announced = valid(folder), Announced()
    trainer = small.trainer(folder, announced, *plugins, **OPTIONS)
    try:
        trainer.train(resume_from_checkpoint=True)
    except (LookupError, PowerCut):
        assert trainer.outcome == "failed"
    if trainer.running.loop.phase is not Phase.INIT:  # a failure there comes before anything is loaded
        assert trainer.resumed_from == (before[-1] if before else None)
    gone = [path for path in announced.checkpoints[-1:] if not is_valid(path)]
    assert gone == []
    rows = Counter((row["step"], "eval_loss" in row, "train_loss" in row) for row in trainer.state.log_history)
    assert set(rows.values()) <= {1}, rows
    return trainer


def comparable(small, trainer):
    outcome = small.outcome(trainer)
    del outcome["counters"], outcome["patience"]
    return outcome


@pytest.fixture
def plain(small, tmp_path):
    trainer = small.trainer(tmp_path, **OPTIONS)
    trainer.train()
    return comparable(small, trainer)


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_whatever_happens_the_run_ends_with_the_bits_of_the_plain_one(small, plain, assert_same, seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for act, where, when in sequence_of(random.Random(seed)):
            if act is None:
                damage(folder, where, when)
            else:
                trained(small, folder, acting(where, when, act))
        last = trained(small, folder)
        assert (last.outcome, last.state.global_step) == ("completed", LAST)
        assert_same(plain, comparable(small, last))
        left = [path.name for path in folder.iterdir() if path.name.startswith((".tmp-", ".old-", ".del-"))]
        assert left == []
