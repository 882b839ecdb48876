"""Signals end a run in order wherever it is: between updates, in an evaluation, and while data is awaited."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.toys import Classifier, trainer_for
from trainer_core import SettingsError, Trainer, TrainingArguments


class Signalling(Dataset):
    """Rows; the one of `index` is awaited for long, and a signal comes meanwhile."""

    def __init__(self, index, number):
        self.index, self.number = index, number

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == self.index:
            threading.Timer(0.2, os.kill, (os.getpid(), self.number)).start()
            time.sleep(60)
        return {"x": torch.full((4,), float(index)), "labels": torch.tensor(index % 3)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_served_while_a_sample_is_awaited(number, make_trainer, writer):
    given = {"train_dataset": Signalling(21, number), "plugins": [writer]}
    trainer = make_trainer(given=given, train_sampling_strategy="sequential")
    started = time.monotonic()
    trainer.train()
    assert time.monotonic() - started < 30
    assert (writer.steps, trainer.outcome, trainer.state.global_step) == ([5], "interrupted", 5)
    assert (trainer.stop_request.by, trainer.exit_code) == (signal.Signals(number).name, 128 + number)
    assert trainer.state.batches_done == 5


def test_a_signal_is_served_while_workers_are_awaited(make_trainer, writer):
    class Slow(Signalling):
        def __getitem__(self, index):
            if index >= 8:
                time.sleep(3)
            return super().__getitem__(index)

    def interrupt(trainer):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    class AtTwo:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 2:
                interrupt(trainer)

    given = {"train_dataset": Slow(-1, 0), "plugins": [writer, AtTwo()]}
    trainer = make_trainer(given=given, train_sampling_strategy="sequential", dataloader_num_workers=1)
    started = time.monotonic()
    trainer.train()
    assert time.monotonic() - started < 11  # the batch that is awaited takes 12
    assert (writer.steps, trainer.outcome) == ([2], "interrupted")


def test_an_evaluation_that_is_interrupted_is_given_up_and_stays_due(make_trainer, acting, writer):
    def interrupt(trainer):
        os.kill(os.getpid(), signal.SIGINT)

    class Noting:
        def __init__(self):
            self.evaluated = []

        def on_evaluate(self, trainer):
            self.evaluated.append(trainer.state.global_step)

    noting = Noting()
    trainer = make_trainer(
        given={"plugins": [acting("on_prediction_step", interrupt, times=1), writer, noting]},
        eval_strategy="steps",
        eval_steps=5,
    )
    trainer.train()
    assert (noting.evaluated, writer.steps, trainer.outcome) == ([], [5], "interrupted")
    assert trainer.state.last_eval_step == -1
    pending = trainer.running.loop.pending
    assert (pending.by, pending.why) == ("eval_strategy", "every 5 updates")


def test_a_due_evaluation_does_not_hold_up_a_run_that_is_cut_short(make_trainer, acting, writer):
    def interrupt(trainer):
        if trainer.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(
        given={"plugins": [acting("on_step_begin", lambda trainer: None), acting("on_step_end", interrupt), writer]},
        eval_strategy="steps",
        eval_steps=5,
    )
    trainer.train()
    assert (writer.steps, trainer.state.last_eval_step) == ([5], -1)


def test_only_the_named_signals_end_a_run(make_trainer, acting, writer):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        act = acting("on_step_end", lambda trainer: os.kill(os.getpid(), signal.SIGUSR1), times=1)
        trainer = make_trainer(given={"plugins": [act, writer]}, stop_signals=["SIGUSR2"])
        trainer.train()
        assert (heard, trainer.outcome, trainer.exit_code) == ([signal.SIGUSR1], "completed", 0)
        act = acting("on_step_end", lambda trainer: os.kill(os.getpid(), signal.SIGUSR2), times=1)
        trainer = make_trainer(given={"plugins": [act, writer]}, stop_signals=["SIGUSR2"])
        trainer.train()
        assert (trainer.outcome, trainer.exit_code) == ("interrupted", 128 + signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_handlers_exist_only_inside_train(make_trainer):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    during = []

    class Looking:
        def on_step_begin(self):
            during.append([signal.getsignal(number) for number in numbers])

    make_trainer(given={"plugins": [Looking()]}).train()
    assert [signal.getsignal(number) for number in numbers] == before
    assert all(handler not in before for handler in during[0])


def test_a_handler_that_is_not_pythons_is_left_alone(make_trainer, tmp_path):
    with (tmp_path / "stacks").open("w+") as file:
        faulthandler.register(signal.SIGUSR1, file)
        try:
            make_trainer().train()
            os.kill(os.getpid(), signal.SIGUSR1)
            file.seek(0)
            assert "Current thread" in file.read()
        finally:
            faulthandler.unregister(signal.SIGUSR1)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP", "SIGNONSENSE", "int"])
def test_what_is_no_signal_that_can_be_served_is_refused(name, tmp_path):
    with pytest.raises(SettingsError, match=f"stop_signals.*{name}.* is no signal that can be served"):
        TrainingArguments(str(tmp_path), stop_signals=["SIGTERM", name])


def test_a_run_that_a_plugin_cuts_short_asks_to_be_started_again(make_trainer, acting, writer):
    from trainer_core import Signal

    def cut(trainer):
        trainer.request(Signal.STOP, by="clock", why="time is up", interrupt=True)

    trainer = make_trainer(given={"plugins": [acting("on_step_end", cut, times=1), writer]})
    trainer.train()
    assert (trainer.outcome, trainer.exit_code) == ("interrupted", 75)


def test_a_run_that_failed_has_exit_code_1(make_trainer, acting):
    def fail(trainer):
        raise LookupError

    trainer = make_trainer(given={"plugins": [acting("on_step_end", fail, times=1)]})
    with pytest.raises(LookupError):
        trainer.train()
    assert trainer.exit_code == 1


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from tests.test_interruption import slow_trainer
trainer = slow_trainer({folder!r})
trainer.train(resume_from_checkpoint=True)
sys.exit(trainer.exit_code)
"""


class Tardy(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(0.02)
        return {"x": torch.full((4,), float(index)), "labels": torch.tensor(index % 3)}


def slow_trainer(folder) -> Trainer:
    return trainer_for(Path(folder), Classifier(), Tardy(), block_plugins=[], save_strategy="steps", num_train_epochs=3)


def test_a_script_ends_with_the_signals_code_and_says_where_it_was_saved(tmp_path):
    code = SCRIPT.format(root=str(Path(__file__).parents[1]), folder=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    for line in process.stdout:
        if line.startswith("Training"):
            break
    time.sleep(1.0)
    process.terminate()
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Interrupted by SIGTERM at step " in told
    assert ", saved" in told


def test_a_users_own_loader_goes_on_after_the_interrupt(make_trainer, writer):
    data = Signalling(13, signal.SIGINT)

    class Own(Trainer):
        def get_train_dataloader(self):
            return DataLoader(data, batch_size=4)

    trainer = make_trainer(kind=Own, given={"train_dataset": data, "plugins": [writer]})
    trainer.train()
    assert (writer.steps, trainer.outcome) == ([3], "interrupted")
