"""The console on real outputs: a pipe, a terminal, none at all; however the run ends."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from trainer_core import SettingsError, TrainingArguments
from trainer_core.console.plugin import Console, ConsoleSettings

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"

SCRIPT = """
import logging, os, sys, time, warnings
import torch
from torch.utils.data import TensorDataset
from trainer_core import Trainer, TrainingArguments

sys.path.insert(0, {here!r})
from toys import Classifier, table

class User:
    def on_step_end(self, trainer):
        time.sleep(float(os.environ.get("SLEEP", "0.02")))
        step = trainer.state.global_step
        if step % 5 == 0:
            trainer.log_training_row()
        if step == 10:
            print("printed by the user")
            logger.warning("logged by the user")
            warnings.warn("warned by the user")
        if step == int(os.environ.get("FAIL", "0")):
            raise ValueError("user code broke")

    def on_evaluate(self, trainer):
        time.sleep(0.4)

    def write_checkpoint(self, trainer):
        folder = trainer.args.output_dir + "/checkpoint-" + str(trainer.state.global_step)
        os.makedirs(folder)
        return folder and __import__("pathlib").Path(folder)

logging.basicConfig()
logger = logging.getLogger("user")
data = TensorDataset(*table(80))
args = TrainingArguments(
    {folder!r}, block_plugins=["logging", "checkpointing"], per_device_train_batch_size=4, num_train_epochs=2,
    eval_strategy="epoch", console={console!r},
)
Trainer(model=Classifier(), args=args, train_dataset=data, eval_dataset=data, plugins=[User()]).train()
print("after the run")
"""


@pytest.fixture
def command(tmp_path):
    """Gives a function that gives the command of a run of 40 updates in a process of its own."""

    def make(**console):
        here = str(Path(__file__).parent)
        script = tmp_path / "train.py"
        script.write_text(SCRIPT.format(here=here, folder=str(tmp_path / "run"), console=console), encoding="utf-8")
        return [sys.executable, str(script)]

    return make


class Screen:
    """A process on a terminal of its own, 30 lines of 100 columns, with all that it wrote there."""

    def __init__(self, command, **environment):
        main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        env = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=env, start_new_session=True
        )
        os.close(other)
        self.written = b""
        self._reader = threading.Thread(target=self._read, args=(main,))
        self._reader.start()

    def _read(self, main):
        with contextlib.suppress(OSError):  # the terminal is closed when the process is gone
            while chunk := os.read(main, 65536):
                self.written += chunk
        os.close(main)

    def wait_for(self, text):
        """Waits until `text` was written."""
        end = time.monotonic() + 120
        while text not in self.text and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.02)
        assert text in self.text

    def end(self):
        """Waits for the end; gives the exit code."""
        code = self.process.wait(120)
        self._reader.join(10)
        return code

    @property
    def text(self):
        return self.written.decode("utf-8", errors="replace")

    @property
    def plain(self):
        """What was written, without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.text)


def is_restored(screen):
    return screen.text.rindex(SHOW) > screen.text.rindex(HIDE)


def piped(command, **environment):
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
    return subprocess.run(command, capture_output=True, env=env, timeout=120, check=False)


def test_a_pipe_gets_plain_rows_and_no_control_character(command):
    done = piped(command())
    assert (done.returncode, re.findall(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)) == (0, [])
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "Training Classifier on cpu"
    assert sum(line.startswith("step ") and "  train  loss " in line for line in lines) == 8
    assert sum(line.startswith("step ") and "  eval   loss " in line for line in lines) == 2
    assert "printed by the user" in lines
    assert any(line.startswith("✓ Completed 40 steps, 2 epochs in ") for line in lines)
    assert lines[-1] == "after the run"
    assert b"logged by the user" in done.stderr


def test_a_pipe_gets_a_sign_of_life(command):
    done = piped(command(heartbeat_seconds=0.3, refresh_seconds=0.05, show_plan=False, show_summary=False))
    lines = done.stdout.decode().splitlines()
    assert any(re.match(r"still evaluating 0:00: step (20|40)/40, epoch [12]\.00/2", line) for line in lines), lines
    assert not any(line.startswith(("Training", "✓")) for line in lines)


def test_a_failed_run_in_a_pipe_says_how_to_go_on_where_there_is_a_checkpoint(command):
    done = piped(command(), FAIL="15", SLEEP="0")
    assert done.returncode == 1
    assert "✗ Failed at step 15 of 40 after " in done.stdout.decode()
    assert "goes on after step 15" in done.stdout.decode()
    told = done.stderr.decode().rstrip().splitlines()
    assert [line for line in told if line.startswith("ValueError: user code broke")]
    assert told[-1].startswith("saved at step 15 first: resume_from_checkpoint=True goes on from ")


def test_a_terminal_shows_progress_phases_and_what_others_print_and_is_restored(command):
    screen = Screen(command())
    assert screen.end() == 0
    for text in ("training        ", "evaluating 0:00", "━", "─", "/40  epoch ", " left", " samples/s"):
        assert text in screen.plain
    for text in ("printed by the user", "WARNING:user:logged by the user", "UserWarning: warned by the user"):
        assert screen.plain.count(text) == 1
    assert "✓ Completed 40 steps" in screen.plain
    assert is_restored(screen)
    assert screen.plain.rstrip().endswith("after the run")


def test_a_terminal_is_restored_after_an_exception_of_the_user(command):
    screen = Screen(command(), FAIL="15")
    assert screen.end() == 1
    assert is_restored(screen)
    shown = screen.plain
    assert "✗ Failed at step 15 of 40" in shown
    assert shown.index("✗ Failed") < shown.index("Traceback") < shown.rindex("ValueError: user code broke")


def test_a_terminal_is_restored_after_an_interrupt_that_saves(command):
    screen = Screen(command(), SLEEP="0.1")
    screen.wait_for("grad norm")
    os.kill(screen.process.pid, signal.SIGINT)
    assert screen.end() == 0
    assert is_restored(screen)
    assert re.search(r"■ Interrupted by SIGINT at step (\d+) of 40 after .*, saved", screen.plain)
    assert re.search(r"resume +trainer\.train\(resume_from_checkpoint=True\) goes on after step \d+", screen.plain)
    assert "after the run" in screen.plain


def test_a_terminal_is_restored_when_the_run_is_stopped_at_once(command):
    screen = Screen(command(), SLEEP="30")
    screen.wait_for("epoch 0.05")
    os.kill(screen.process.pid, signal.SIGINT)
    screen.wait_for("SIGINT asks to stop")
    os.kill(screen.process.pid, signal.SIGINT)
    assert screen.end() != 0
    assert is_restored(screen)
    assert "■ Interrupted at step 1 of 40 after " in screen.plain


def test_a_terminal_without_moving_cursor_gets_plain_lines(command):
    screen = Screen(command(), TERM="dumb", SLEEP="0")
    assert screen.end() == 0
    assert "\x1b" not in screen.text
    assert "step  5/40" in screen.text


@pytest.fixture
def run(make_trainer):
    """Gives a function that makes a trainer with the console and no other built-in plugin."""

    def make(given=None, **options):
        return make_trainer(given=given, **{"block_plugins": ["logging", "checkpointing"], **options})

    return make


def test_a_blocked_console_is_silent(make_trainer, capfd):
    make_trainer().train()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("console", [None, False, {"mode": "off"}])
def test_a_console_that_is_off_is_silent(run, capfd, console):
    trainer = run(console=console)
    trainer.train()
    trainer.evaluate()
    assert capfd.readouterr() == ("", "")


def test_another_rank_than_the_main_one_is_silent(run, capfd, monkeypatch):
    trainer = run()
    monkeypatch.setattr(type(trainer), "is_main_rank", False)
    trainer.train()
    trainer.evaluate()
    assert capfd.readouterr() == ("", "")


def test_plain_output_and_import_load_no_rich():
    code = "import sys, trainer_core.console; print(any(name.partition('.')[0] == 'rich' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_metrics_outside_a_run_take_one_line(run, make_data, capsys):
    trainer = run()
    trainer.evaluate()
    trainer.predict(make_data(8))
    trainer.log({"mine": 1.5})
    shown = [re.sub(r"\d+\.\d\d s", "t", line) for line in capsys.readouterr().out.splitlines()]
    loss = r"loss \d\.\d+"
    assert [re.sub(loss, "loss L", line) for line in shown] == [
        "evaluation: loss L  in t",
        "prediction: loss L  in t",
        "log: mine 1.500",
    ]


def test_without_a_summary_the_closing_row_is_shown(run, capsys):
    run(console={"show_summary": False, "show_plan": False}).train()
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 10/10  epoch 1\.00  end    in \d+\.\d+ s  loss \d\.\d+", line)


def test_a_refused_run_shows_nothing(run, capsys):
    with pytest.raises(SettingsError, match="train_dataset"):
        run(given={"train_dataset": None}).train()
    assert capsys.readouterr().out == ""


def test_the_time_of_plugins_is_that_of_this_run(run, acting, capsys):
    trainer = run(given={"plugins": [acting("on_train_begin", lambda trainer: time.sleep(0.5), times=1)]})
    trainer.train()
    first = capsys.readouterr().out
    trainer.train()
    second = capsys.readouterr().out
    assert re.search(r"plugins .*Acting 0\.5\d s", first)
    assert not re.search(r"plugins .*Acting 0\.5\d s", second)


def test_a_second_run_starts_anew(run, capsys):
    trainer = run()
    for _ in range(2):
        trainer.train()
        assert "Completed 10 steps, 1 epoch in" in capsys.readouterr().out


def test_a_console_that_fails_ends_no_run(run, capsys, monkeypatch, caplog):
    monkeypatch.setattr("trainer_core.console.plugin.opening", lambda *_: 1 / 0)
    trainer = run()
    trainer.train()
    assert trainer.state.global_step == 10
    assert "plugin 'console', hook on_train_begin: failed" in caplog.text
    assert capsys.readouterr().out == ""


def test_the_display_is_closed_though_another_teardown_fails(run, capsys):
    class Broken:
        def on_teardown(self):
            raise RuntimeError("broken teardown")

    trainer = run(given={"plugins": [Broken()]})
    with pytest.raises(RuntimeError, match="broken teardown"):
        trainer.train()
    assert "trainer_core console" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(("disabled", "mode"), [(True, "plain"), (False, "terminal"), (None, "terminal")])
def test_the_guides_name_asks_for_plain_lines_on_a_terminal(tmp_path, monkeypatch, disabled, mode):
    monkeypatch.setattr(sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setenv("TERM", "xterm-256color")
    args = TrainingArguments(tmp_path, block_plugins=["logging", "checkpointing"], disable_tqdm=disabled)
    assert args.section("console").disable_tqdm is disabled
    assert Console(args.section("console"))._mode() == mode


def test_a_terminal_and_no_bar_contradict_each_other(tmp_path):
    with pytest.raises(SettingsError) as refused:
        TrainingArguments(tmp_path, disable_tqdm=True, console={"mode": "terminal"}, block_plugins=["checkpointing"])
    assert refused.value.problems == [
        "disable_tqdm: contradicts console.mode='terminal', got True. Leave one of them out."
    ]


@pytest.mark.parametrize("mode", ["terminal", "notebook"])
def test_a_mode_that_the_output_is_not_fit_for_is_said(mode, caplog, capsys):
    assert Console(ConsoleSettings(mode=mode))._mode() == "plain"
    assert caplog.messages == [f"console.mode: standard output is no {mode}, plain is shown. Set it to 'auto'."]
