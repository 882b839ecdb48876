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


@pytest.mark.parametrize("hook", ["on_init_end", "on_train_begin"])
def test_a_signal_before_the_first_update_ends_the_run_in_order(hook, make_trainer, acting, writer):
    def interrupt(trainer):
        os.kill(os.getpid(), signal.SIGTERM)

    class Preparing(Trainer):
        def create_optimizer(self):
            if hook == "on_init_end":
                interrupt(self)
            return super().create_optimizer()

    act = acting("on_train_begin", interrupt if hook == "on_train_begin" else lambda trainer: None)
    trainer = make_trainer(kind=Preparing, given={"plugins": [act, writer]}, eval_on_start=True)
    trainer.train()
    assert (trainer.outcome, trainer.exit_code, writer.steps) == ("interrupted", 143, [0])
    assert trainer.running.loop.pending.by == "eval_on_start"


def test_a_signal_during_the_last_phase_lets_it_end_and_a_second_one_does_not(make_trainer, acting):
    def interrupt(trainer):
        os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(given={"plugins": [acting("on_train_end", interrupt)]})
    trainer.train()
    assert (trainer.outcome, trainer.exit_code) == ("completed", 0)
    trainer = make_trainer(given={"plugins": [acting("on_train_end", lambda one: (interrupt(one), interrupt(one)))]})
    with pytest.raises(KeyboardInterrupt, match="SIGTERM: stopped at once"):
        trainer.train()


def test_a_signal_during_the_last_evaluation_leaves_it_due_though_the_plan_is_done(make_trainer, acting, writer):
    def interrupt(trainer):
        if trainer.state.global_step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    given = {"plugins": [acting("on_prediction_step", interrupt), writer]}
    trainer = make_trainer(given=given, eval_strategy="steps", eval_steps=5)
    trainer.train()
    assert (trainer.outcome, writer.steps, trainer.state.last_eval_step) == ("interrupted", [10], 5)
    assert trainer.running.loop.pending.why == "every 5 updates"


def test_a_stop_for_good_is_remembered_by_a_run_that_is_cut_short_at_the_same_update(make_trainer, acting, writer):
    from trainer_core import Signal

    def stop(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        trainer.request(Signal.STOP, by="patience", why="it is over")

    trainer = make_trainer(given={"plugins": [acting("on_step_end", stop, times=1), writer]})
    trainer.train()
    assert (trainer.outcome, writer.steps) == ("interrupted", [1])
    assert trainer.state.stopped_by == {"by": "patience", "why": "it is over"}


def test_a_signal_while_a_failed_run_is_torn_down_keeps_its_error(make_trainer, acting):
    class Failing(Signalling):
        def __getitem__(self, index):
            raise LookupError

    before = signal.getsignal(signal.SIGTERM)
    act = acting("on_exception", lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
    trainer = make_trainer(given={"train_dataset": Failing(0, 0), "plugins": [act]})
    with pytest.raises(LookupError):
        trainer.train()
    assert (trainer.outcome, signal.getsignal(signal.SIGTERM)) == ("failed", before)


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_leaves_the_workers_to_the_run(number, tmp_path):
    code = SCRIPT.format(root=str(Path(__file__).parents[1]), folder=str(tmp_path), options="dataloader_num_workers=1")
    process = started(code, tmp_path)
    os.killpg(process.pid, number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert f"Interrupted by {signal.Signals(number).name} at step " in told


def started(code, folder):
    """Starts a script of its own process group and waits until it has trained for a second."""
    command = [sys.executable, "-c", code]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, cwd=folder, **options)
    for line in process.stdout:
        if line.startswith("Training"):
            break
    time.sleep(1.0)
    return process


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from tests.test_interruption import slow_trainer
trainer = slow_trainer({folder!r}, {options})
trainer.train(resume_from_checkpoint=True)
sys.exit(trainer.exit_code)
"""


class Tardy(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(0.02)
        return {"x": torch.full((4,), float(index)), "labels": torch.tensor(index % 3)}


def slow_trainer(folder, **options) -> Trainer:
    options = {"save_strategy": "steps", "num_train_epochs": 3, **options}
    return trainer_for(Path(folder), Classifier(), Tardy(), block_plugins=[], **options)


def test_a_script_ends_with_the_signals_code_and_says_where_it_was_saved(tmp_path):
    process = started(SCRIPT.format(root=str(Path(__file__).parents[1]), folder=str(tmp_path), options=""), tmp_path)
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
