"""Plain lines: rows, a sign of life, and no control characters."""

import io
from types import SimpleNamespace

import pytest

from trainer_core.console import plaintext
from trainer_core.console.pace import Pace
from trainer_core.console.plaintext import PlainDisplay, PlainWriter
from trainer_core.phases import Phase
from trainer_core.state import TrainerState


class Watch:
    """A clock that goes on when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def run(monkeypatch):
    """A display with a sign of life every 30 seconds, its clock and what it wrote."""
    watch = Watch()
    monkeypatch.setattr(plaintext, "perf_counter", watch)
    state = TrainerState(global_step=50, max_steps=540, num_samples_seen=1600, epoch=0.56, num_train_epochs=6)
    trainer = SimpleNamespace(state=state, running=SimpleNamespace(loop=SimpleNamespace(raised={})))
    stream = io.StringIO()
    pace = Pace(max_steps=540, clock=watch)
    display = PlainDisplay(trainer, pace, stream, heartbeat_seconds=30.0)
    return SimpleNamespace(
        display=display, pace=pace, watch=watch, state=state, lines=lambda: stream.getvalue().splitlines()
    )


def row(step):
    return {"loss": 1.4021, "learning_rate": 8.2e-4, "epoch": step / 90, "step": step}


def test_rows_with_speed_and_time_left_as_of_the_last_tick(run):
    run.pace.enter(Phase.STEP)
    run.watch.now += 5.0
    run.display.tick()
    run.display.row("train", row(50))
    run.display.row("eval", {"eval_loss": 0.8, "eval_f1": 0.5, "eval_runtime": 0.31, "epoch": 0.56, "step": 50})
    assert run.lines() == [
        "step  50/540  epoch 0.56  train  loss 1.402  lr 8.20e-04  320 samples/s  0:49 left",
        "step  50/540  epoch 0.56  eval   loss 0.8000  f1 0.5000  in 0.31 s",
    ]


def test_rows_that_follow_each_other_fast_are_written_together_and_none_is_lost(run):
    for step in (1, 2, 3):
        run.display.row("train", row(step))
    assert run.lines() == []
    run.display.tick()
    assert [line.split()[1] for line in run.lines()] == ["1/540", "2/540", "3/540"]
    run.display.row("train", row(4))
    run.display.close()
    assert len(run.lines()) == 4


def test_a_row_after_a_pause_is_written_at_once(run):
    run.watch.now += 0.3
    run.display.row("train", row(1))
    assert len(run.lines()) == 1


def test_there_is_a_sign_of_life_when_nothing_was_written_for_long(run):
    run.pace.enter(Phase.STEP)
    run.watch.now += 5.0
    run.pace.enter(Phase.EVAL)
    for _ in range(65):
        run.watch.now += 1.0
        run.display.tick()
    assert run.lines() == [
        "still evaluating 0:25: step 50/540, epoch 0.56/6, 320 samples/s, 0:49+ left",
        "still evaluating 0:55: step 50/540, epoch 0.56/6, 320 samples/s, 0:49+ left",
    ]


def test_lines_have_no_control_characters_and_what_the_stream_can_take():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainWriter(stream).write("a\x1b[31m\r\n2 × 3\x9b", "b")
    assert raw.getvalue() == b"a [31m  2 x 3 \nb\n"
