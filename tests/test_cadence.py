import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import Cadence, interval

counts = st.integers(1, 60)
delays = st.one_of(st.just(0), st.integers(0, 80))


@given(every=counts, delay=delays, max_steps=counts, at_the_end=st.booleans())
def test_the_steps_foretold_are_the_steps_that_are_due(every, delay, max_steps, at_the_end):
    cadence = Cadence("steps", every, delay, at_the_end)
    due = [step for step in range(1, max_steps + 1) if cadence.is_due(step, max_steps)]
    assert cadence.steps(max_steps, None) == due


@given(every=counts, max_steps=counts)
def test_steps_are_the_multiples_and_the_last_update_once(every, max_steps):
    multiples = set(range(every, max_steps + 1, every))
    assert Cadence("steps", every).steps(max_steps, None) == sorted(multiples | {max_steps})
    assert Cadence("steps", every, at_the_end=False).steps(max_steps, None) == sorted(multiples)


@given(per_epoch=counts, max_steps=st.integers(1, 300))
def test_epochs_end_at_their_last_update_and_the_last_one_where_the_run_does(per_epoch, max_steps):
    steps = Cadence("epoch").steps(max_steps, per_epoch)
    assert len(steps) == math.ceil(max_steps / per_epoch)
    assert steps[-1] == max_steps
    assert steps[:-1] == [per_epoch * epoch for epoch in range(1, len(steps))]


@given(per_epoch=counts, max_steps=st.integers(1, 300), delay=st.floats(0, 10))
def test_nothing_is_foretold_before_the_delay_in_epochs(per_epoch, max_steps, delay):
    steps = Cadence("epoch", delay=delay).steps(max_steps, per_epoch)
    assert steps == [step for step in Cadence("epoch").steps(max_steps, per_epoch) if step / per_epoch >= delay]


@given(
    per_epoch=counts, whole=st.integers(0, 5), part=st.floats(0.01, 0.99), delay=st.floats(0, 6, allow_subnormal=False)
)
def test_a_last_epoch_that_is_cut_short_is_foretold_when_it_comes_as_far_as_the_delay(per_epoch, whole, part, delay):
    num_epochs = whole + part
    max_steps = math.ceil(num_epochs * per_epoch)
    steps = Cadence("epoch", delay=delay).steps(max_steps, per_epoch, num_epochs)
    is_cut = max_steps % per_epoch != 0
    assert (max_steps in steps) == ((num_epochs if is_cut else max_steps // per_epoch) >= delay)
    assert all(step % per_epoch == 0 and step // per_epoch >= delay for step in steps if step != max_steps)


@pytest.mark.parametrize("strategy", ["no", "epoch", "best"])
@given(step=counts, every=counts)
def test_only_a_cadence_of_steps_is_due_by_counting(strategy, step, every):
    assert not Cadence(strategy, every).is_due(step, step)


def test_epochs_of_unknown_length_cannot_be_foretold():
    assert Cadence("epoch").steps(100, None) is None
    assert Cadence("no").steps(100, None) == []
    assert Cadence("steps", 0).steps(100, None) == []
    assert not Cadence("steps", 0).is_due(100, 100)


@pytest.mark.parametrize(
    ("every", "step", "max_steps", "reason"),
    [
        (1, 7, 7, "every update"),
        (50, 100, 120, "every 50 updates"),
        (50, 120, 120, "the last update, 120"),
        (60, 120, 120, "every 60 updates"),
    ],
)
def test_a_reason_says_why_it_is_due(every, step, max_steps, reason):
    assert Cadence("steps", every).reason(step, max_steps) == reason


@given(percent=st.integers(1, 99), max_steps=st.integers(1, 10**6))
def test_a_share_is_rounded_up_exactly(percent, max_steps):
    assert interval(percent / 100, max_steps) == -(-max_steps * percent // 100)


@given(count=counts, max_steps=counts)
def test_a_count_is_itself(count, max_steps):
    assert interval(count, max_steps) == interval(float(count), max_steps) == count


@pytest.mark.parametrize("nothing", [None, 0, 0.0])
def test_nothing_is_never(nothing):
    assert interval(nothing, 100) == 0


@given(share=st.floats(1e-12, 1, exclude_max=True), max_steps=st.integers(1, 10**6))
def test_a_share_is_one_update_at_least(share, max_steps):
    assert 1 <= interval(share, max_steps) <= max_steps
