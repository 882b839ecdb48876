"""The clock of a display."""

import logging
import threading

from trainer_core.console.display import Clock


def test_it_ticks_until_it_is_stopped():
    ticks, three = [], threading.Event()

    def tick():
        ticks.append(1)
        if len(ticks) == 3:
            three.set()

    clock = Clock(tick, 0.001)
    clock.start()
    assert three.wait(30)
    clock.stop()
    done = len(ticks)
    assert not clock._thread.is_alive()
    assert len(ticks) == done


def test_a_tick_that_raises_is_told_once_and_ends_the_ticking(caplog):
    clock = Clock(lambda: 1 / 0, 0.001)
    with caplog.at_level(logging.WARNING):
        clock.start()
        clock._thread.join(30)
    assert [record.getMessage() for record in caplog.records] == [
        "console: the display is no longer refreshed, got ZeroDivisionError('division by zero')."
    ]


def test_it_can_be_stopped_before_it_was_started_and_twice():
    clock = Clock(lambda: None, 1.0)
    clock.stop()
    clock.stop()
