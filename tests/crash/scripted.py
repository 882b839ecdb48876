"""A run that follows a script: at an update and in a hook it asks for something, fails, or ends at once."""

from __future__ import annotations

import os
import random
import signal
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

from tests.crash.runs import COMMON, Net, Noisy
from trainer_core import Signal, Trainer, TrainingArguments
from trainer_core.testing.crash.witness import Witness, account_of, plain

LAST: Final = 9
EVAL_STEPS: Final = 3
SAVE_STEPS: Final = 4
SETTINGS: Final = {
    **COMMON,
    "max_steps": LAST,
    "eval_steps": EVAL_STEPS,
    "save_steps": SAVE_STEPS,
    "save_total_limit": 3,
    "load_best_model_at_end": False,
}

Script = Sequence[tuple[str, str, int]]
"""Each act once: (act, hook, update)."""


class PlannedError(Exception):
    """What a script lets a hook raise."""


class Scripted(Witness):
    """Tells each step, evaluation and save, and acts by the script."""

    name = "witness"

    def __init__(self, announce: Callable[[str], None], script: Script) -> None:
        super().__init__(announce)
        self.script = list(script)

    def on_train_begin(self, trainer):
        self.announce(f"begins {trainer.state.global_step}")
        if trainer.state.global_step:
            self.act(trainer, "on_train_begin", 0)

    def on_step_begin(self, trainer):
        self.act(trainer, "on_step_begin", trainer.state.global_step + 1)

    def on_step_end(self, trainer):
        super().on_step_end(trainer)
        self.announce(f"step {trainer.state.global_step} {_digest(trainer)}")
        self.act(trainer, "on_step_end")

    def on_evaluate(self, trainer, metrics):
        super().on_evaluate(trainer, metrics)
        self.announce(f"evaluates {trainer.state.global_step} {metrics['eval_loss'].hex()}")
        self.act(trainer, "on_evaluate")

    def on_save(self, trainer, checkpoint):
        self.saves.append(trainer.state.global_step)
        self.announce(f"saves {trainer.state.global_step}")
        self.act(trainer, "on_save")

    def act(self, trainer, hook, step=None):
        step = trainer.state.global_step if step is None else step
        for entry in [entry for entry in self.script if entry[1:] == (hook, step)]:
            self.script.remove(entry)
            ACTS[entry[0]](trainer)


def _digest(trainer):
    """Gives the same for the same bits of model, optimizer and schedule."""
    state = (trainer.model.state_dict(), trainer.optimizer.state_dict(), trainer.lr_scheduler.state_dict())
    return f"{zlib.crc32(repr(plain(state)).encode()):08x}"


def _asks(*signals: Signal, **options: bool) -> Callable[[Trainer], None]:
    def ask(trainer):
        for asked in signals:
            trainer.request(asked, by="script", why="it says so", **options)

    return ask


def _fail(trainer):
    raise PlannedError


ACTS: Final = {
    "ask for an evaluation": _asks(Signal.EVAL),
    "ask for a save": _asks(Signal.SAVE),
    "ask for a stop": _asks(Signal.STOP),
    "send SIGTERM": lambda trainer: os.kill(os.getpid(), signal.SIGTERM),
    "fail": _fail,
    "forget": lambda trainer: trainer.model.head.bias.data.zero_(),
    "kill": lambda trainer: os.kill(os.getpid(), signal.SIGKILL),
}


def forgetful(folder: Path, announce: Callable[[str], None], script: Script, **options: Any) -> dict[str, Any]:
    """As `run`, with a weight that a resumed one does not bring back."""
    return run(folder, announce, [*script, ("forget", "on_train_begin", 0)], **options)


def run(folder: Path, announce: Callable[[str], None], script: Script, **options: Any) -> dict[str, Any]:
    """Trains by the script in `folder`, resuming what is there, and gives what came of it."""
    random.seed(7)
    torch.manual_seed(7)
    witness = Scripted(announce, script)
    trainer = Trainer(
        model=Net(),
        args=TrainingArguments(str(folder), **{**SETTINGS, **options}),
        train_dataset=Noisy(10, 0, noise=0.1),
        eval_dataset=Noisy(6, 1, noise=0.0),
        plugins=[witness],
    )
    with suppress(PlannedError):
        trainer.train()
    return account_of(trainer, witness)
