"""The time left: what is measured times what the plan still holds."""

import pytest

from trainer_core.console.pace import Pace, TimeLeft
from trainer_core.phases import Phase


class Watch:
    """A clock that goes on when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def watch():
    return Watch()


def walk(pace, watch, *visits):
    """Spends seconds in phases, in turn; the last one stays entered."""
    for phase, seconds in visits:
        pace.enter(phase)
        watch.now += seconds


def test_nothing_is_known_before_the_first_update(watch):
    pace = Pace(max_steps=100, clock=watch)
    walk(pace, watch, (Phase.STEP, 3.0))
    assert (pace.time_left(0), pace.seconds_per_step(0), pace.samples_per_second(0, 0)) == (None, None, None)


def test_updates_that_remain_take_what_updates_took(watch):
    pace = Pace(max_steps=100, clock=watch)
    walk(pace, watch, (Phase.EPOCH, 0.0), (Phase.STEP, 5.0))
    assert pace.time_left(20) == TimeLeft(20.0, False)
    assert pace.samples_per_second(20, 640) == 128.0


def test_evaluations_and_saves_that_remain_are_counted_in_at_their_mean(watch):
    pace = Pace(max_steps=100, evaluations=[20, 40, 60, 80, 100], saves=[20, 100], clock=watch)
    walk(pace, watch, (Phase.STEP, 2.0), (Phase.EVAL, 3.0), (Phase.SAVE, 7.0), (Phase.STEP, 2.0), (Phase.EVAL, 5.0))
    pace.enter(Phase.STEP)
    # 60 updates at 0.1 s, evaluations after 60, 80 and 100 at 4 s, one save at 7 s
    assert pace.time_left(40) == TimeLeft(60 * 0.1 + 3 * 4.0 + 7.0, False)


def test_what_was_never_measured_makes_it_a_lower_bound(watch):
    pace = Pace(max_steps=100, evaluations=[50, 100], clock=watch)
    walk(pace, watch, (Phase.STEP, 1.0))
    assert pace.time_left(10) == TimeLeft(9.0, True)


def test_the_rest_of_an_evaluation_that_is_under_way_counts_and_so_does_the_save_after_it(watch):
    pace = Pace(max_steps=20, evaluations=[10, 20], saves=[10, 20], clock=watch)
    walk(pace, watch, (Phase.STEP, 1.0), (Phase.EVAL, 4.0), (Phase.SAVE, 2.0), (Phase.STEP, 1.0), (Phase.EVAL, 1.0))
    assert pace.time_left(20) == TimeLeft(3.0 + 2.0, False)
    watch.now += 10.0  # it takes longer than the last one did
    assert pace.time_left(20) == TimeLeft(2.0, False)


def test_a_resumed_run_measures_and_counts_only_what_it_does_itself(watch):
    pace = Pace(step=60, samples=1920, max_steps=100, evaluations=[20, 40, 60, 80, 100], clock=watch)
    walk(pace, watch, (Phase.STEP, 2.0), (Phase.EVAL, 1.0))
    pace.enter(Phase.STEP)
    assert pace.seconds_per_step(80) == pytest.approx(0.1)
    assert pace.samples_per_second(80, 2560) == pytest.approx(320.0)
    assert pace.time_left(80) == TimeLeft(pytest.approx(20 * 0.1 + 1.0), False)


def test_time_in_other_phases_does_not_slow_the_pace(watch):
    pace = Pace(max_steps=100, clock=watch)
    walk(pace, watch, (Phase.STEP, 1.0), (Phase.EVAL, 50.0), (Phase.SAVE, 50.0), (Phase.EPOCH, 0.0))
    assert pace.seconds_per_step(10) == pytest.approx(0.1)
    assert pace.elapsed == 101.0


def test_the_pace_is_that_of_the_last_half_minute_where_that_saw_enough_updates(watch):
    pace = Pace(max_steps=10_000, clock=watch)
    pace.enter(Phase.STEP)
    for second in range(1, 101):  # 10 updates a second, then 100 a second
        watch.now += 1.0
        step = 10 * second if second <= 50 else 500 + 100 * (second - 50)
        pace.observe(step, step)
    assert pace.seconds_per_step(step) == pytest.approx(0.01)


def test_a_window_with_few_updates_leaves_it_to_the_whole_run(watch):
    pace = Pace(max_steps=100, clock=watch)
    pace.enter(Phase.STEP)
    for second in range(1, 201):  # an update in 50 seconds
        watch.now += 1.0
        pace.observe(second // 50, 0)
    assert pace.seconds_per_step(4) == pytest.approx(50.0)
