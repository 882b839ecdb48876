"""The live lines and the rows that stay, as whole texts."""

import io
import random
import re
from types import SimpleNamespace

import pytest
from rich.console import Console as RichConsole

from trainer_core.console import terminal
from trainer_core.console.moment import Moment
from trainer_core.console.pace import Pace, TimeLeft
from trainer_core.console.terminal import TerminalDisplay, live_view, row_view
from trainer_core.phases import Phase
from trainer_core.state import TrainerState

LOGS = {"loss": 0.12345, "grad_norm": 1.234, "learning_rate": 8.333e-4, "epoch": 3.44, "step": 310}


def moment(**changes):
    settled = {
        "phase": Phase.STEP, "seconds_in_phase": 1.0, "step": 312, "max_steps": 540, "epoch": 3.467, "num_epochs": 6,
        "elapsed": 12.0, "left": TimeLeft(9.0, False), "samples_per_second": 4210.4, "logs": LOGS,
    }  # fmt: skip
    return Moment(**{**settled, **changes})


def lines(view, width=100):
    console = RichConsole(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(view)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_live_lines():
    assert lines(live_view(moment(), "█▇▅▃▁", 98)) == [
        "training        ━━━━━━━━━━━━━━━━━━━━━━━─────────────────  312/540  epoch 3.47/6  0:12  0:09 left",
        "                loss 0.1235 █▇▅▃▁  grad norm 1.234  lr 8.33e-04  4,210 samples/s",
    ]


def test_what_does_not_fit_is_left_out_the_bar_last():
    assert lines(live_view(moment(), "█▇▅▃▁", 60)) == [
        "training        ━━━━━━━━━━────────  312/540  0:12  0:09 left",
        "                loss 0.1235  grad norm 1.234  lr 8.33e-04  …",
    ]


@pytest.mark.parametrize("width", range(1, 120, 7))
def test_no_line_is_wider_than_asked_for(width):
    for view in (live_view(moment(), "█" * 16, width), live_view(moment(stopping="SIGINT"), "", width, is_ascii=True)):
        assert max(map(len, lines(view, 200))) <= width


def test_the_live_lines_in_ascii():
    assert lines(live_view(moment(step=270), "#=_", 98, is_ascii=True)) == [
        "training        ####################....................  270/540  epoch 3.47/6  0:12  0:09 left",
        "                loss 0.1235 #=_  grad norm 1.234  lr 8.33e-04  4,210 samples/s",
    ]


def test_an_evaluation_shows_its_time_and_an_unknown_length_no_number_of_epochs():
    first, _ = lines(live_view(moment(phase=Phase.EVAL, seconds_in_phase=65.0, num_epochs=0, left=None), "", 95))
    assert first == "evaluating 1:05 ━━━━━━━━━━━━━━━━━━━━━━━─────────────────  312/540  epoch 3.47  0:12"


def test_a_time_that_is_a_lower_bound_and_a_request_to_stop_are_shown():
    first, second = lines(live_view(moment(left=TimeLeft(9.0, True), stopping="SIGINT"), "", 110))
    assert first.endswith("0:09+ left")
    assert second.strip().startswith("SIGINT asks to stop  loss 0.1235")


def test_rows_that_stay_stand_below_each_other():
    evaluation = {"eval_loss": 0.25, "eval_accuracy": 0.975, "eval_runtime": 0.3, "epoch": 4.0, "step": 1360}
    assert lines(row_view("train", LOGS, 1400)) + lines(row_view("eval", evaluation, 1400)) == [
        "step   310  epoch 3.44    train  loss 0.1235    grad norm 1.234     lr 8.33e-04",
        "step 1,360  epoch 4.00    eval   loss 0.2500    accuracy 0.9750    in 0.30 s",
    ]


@pytest.fixture
def display(monkeypatch):
    """A display on a recorded terminal of 80 columns, with its trainer."""
    console = RichConsole(record=True, width=80, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    monkeypatch.setattr(terminal, "_rich_console", lambda: console)
    state = TrainerState(global_step=5, max_steps=10, num_train_epochs=1)
    trainer = SimpleNamespace(state=state, running=SimpleNamespace(loop=SimpleNamespace(raised={})))
    shown = TerminalDisplay(trainer, Pace(max_steps=10))
    yield SimpleNamespace(display=shown, console=console, trainer=trainer, text=console.file.getvalue)
    shown.close()


def rows_shown(display):
    found = re.findall(r"step\s+(\d+)  epoch \S+\s+(\w+)", display.console.export_text(clear=False))
    return [(int(step), kind) for step, kind in found]


def train_row(step):
    return {"loss": 1.0 / step, "learning_rate": 0.1, "epoch": 0.0, "step": step}


def eval_row(step):
    return {"eval_loss": 1.0, "eval_runtime": 1.0, "epoch": 0.0, "step": step}


def test_of_rows_of_training_between_two_drawings_the_newest_is_shown_of_evaluations_all(display):
    shown = display.display
    for step in (1, 2, 3):
        shown.row("train", train_row(step))
    shown.row("eval", eval_row(3))
    shown.row("eval", eval_row(3))
    shown.row("train", train_row(4))
    shown.row("train", train_row(5))
    shown.open(None)
    shown.tick()
    assert rows_shown(display) == [(3, "train"), (3, "eval"), (3, "eval"), (5, "train")]


def test_rows_of_training_come_at_most_once_a_second_and_the_last_at_the_end(display):
    shown = display.display
    shown.open(None)
    for step in (1, 2, 3):
        shown.row("train", train_row(step))
        shown.tick()
    assert rows_shown(display) == [(1, "train")]
    shown.close()
    assert rows_shown(display) == [(1, "train"), (3, "train")]


def test_the_cursor_is_hidden_while_it_is_live_and_shown_after_it(display):
    display.display.open(None)
    assert display.text().rindex("\x1b[?25l") > display.text().find("\x1b[?25h")
    display.display.close()
    display.display.close()
    assert display.text().rindex("\x1b[?25h") > display.text().rindex("\x1b[?25l")


def test_drawing_leaves_pythons_random_numbers_alone(display):
    before = random.getstate()
    display.display.open(None)
    display.display.row("train", train_row(1))
    display.display.tick()
    display.display.close()
    assert random.getstate() == before
