from __future__ import annotations

import json

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.meter import LossMeter

CPU = torch.device("cpu")
LOSSES = st.lists(st.integers(-64, 64).map(lambda number: number / 64), max_size=12)  # sums are exact


@given(LOSSES, LOSSES, st.booleans())
def test_windows_add_up_to_the_run(first, second, as_tensors):
    meter = LossMeter(CPU)
    windows = []
    for losses in (first, second):
        for loss in losses:
            meter.add(torch.tensor(loss) if as_tensors else loss)
        windows.append(meter.read())
    assert windows == [(sum(first), len(first)), (sum(second), len(second))]
    assert meter.mean() == (sum(first + second), len(first + second))


def test_the_mean_of_a_run_leaves_the_window_open():
    meter = LossMeter(CPU)
    meter.add(2.0)
    assert meter.mean() == meter.mean() == (2.0, 1)
    assert meter.read() == (2.0, 1)
    assert meter.read() == (0.0, 0)


def test_an_update_that_the_device_passed_over_counts_nothing():
    meter = LossMeter(CPU)
    meter.add(torch.tensor(3.0), torch.tensor(1.0))
    meter.add(torch.tensor(0.0), torch.tensor(0.0))
    assert meter.read() == (3.0, 1)


@given(LOSSES, LOSSES, LOSSES)
def test_a_meter_goes_on_from_its_state(before, window, after):
    meter, other = LossMeter(CPU), LossMeter(CPU)
    for loss in before:
        meter.add(loss)
    meter.read()
    for loss in window:
        meter.add(torch.tensor(loss))
    other.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    for loss in after:
        meter.add(loss)
        other.add(loss)
    assert other.mean() == meter.mean()
    assert other.read() == meter.read()
