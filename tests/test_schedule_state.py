"""The state of any schedule is JSON and tensors, and restores the schedule."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from trainer_core.optim.schedule_state import load_schedule_state, schedule_state
from trainer_core.optim.schedules import LearningRateSchedule, PlateauSchedule


class Slope:
    """A callable with a memory, which LambdaLR saves."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return 0.9**self.calls


def chained(optimizer):
    parts = [schedulers.LinearLR(optimizer, total_iters=3), schedulers.MultiStepLR(optimizer, [2, 4])]
    return schedulers.SequentialLR(optimizer, [*parts, schedulers.LambdaLR(optimizer, Slope())], milestones=[2, 5])


SCHEDULERS = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "callable with a memory": lambda o: schedulers.LambdaLR(o, Slope()),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9),
    "multi step": lambda o: schedulers.MultiStepLR(o, [2, 4, 4, 8]),
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=30),
    "cyclic": lambda o: schedulers.CyclicLR(o, 1e-3, 1e-2, step_size_up=3, cycle_momentum=False),
    "cyclic of one's own": lambda o: schedulers.CyclicLR(
        o, 1e-3, 1e-2, step_size_up=3, cycle_momentum=False, scale_fn=lambda x: 0.5
    ),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 10),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "sequential": chained,
    "chain": lambda o: schedulers.ChainedScheduler([schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)]),
    "ours": lambda o: LearningRateSchedule(o, lambda step: 0.9**step),
    "our plateau": lambda o: PlateauSchedule(schedulers.ReduceLROnPlateau(o)),
}


def pair(build, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9, **options)
    return optimizer, build(optimizer)


def advance(optimizer, scheduler, updates):
    rates = []
    for _ in range(updates):
        optimizer.step()
        scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("cut", [0, 3, 6])
def test_a_schedule_goes_on_from_its_state_as_json(name, cut):
    whole, again = pair(SCHEDULERS[name]), pair(SCHEDULERS[name])
    advance(*whole, cut)
    state = json.loads(json.dumps(schedule_state(whole[1]), allow_nan=False))
    again[0].load_state_dict(whole[0].state_dict())
    load_schedule_state(again[1], state)
    assert advance(*again, 6) == advance(*whole, 6)


def test_a_users_plateau_keeps_its_best_metric():
    whole, again = (pair(partial(schedulers.ReduceLROnPlateau, patience=1)) for _ in range(2))
    fresh = json.loads(json.dumps(schedule_state(whole[1]), allow_nan=False))
    load_schedule_state(again[1], fresh)
    assert again[1].best == float("inf")
    for metric in (1.0, 2.0):
        whole[1].step(metric)
    load_schedule_state(again[1], schedule_state(whole[1]))
    again[1].step(3.0)
    assert again[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_the_state_shares_nothing_with_the_schedule():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=torch.tensor(0.1))
    scheduler = schedulers.MultiStepLR(optimizer, [2])
    state = schedule_state(scheduler)
    state["base_lrs"][0].zero_()
    state["milestones"]["__pairs__"].clear()
    assert scheduler.base_lrs == [torch.tensor(0.1)]
    assert dict(scheduler.milestones) == {2: 1}


def test_tensors_of_the_state_are_copied_into_the_schedule():
    def build():
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=torch.tensor(0.1))
        return schedulers.MultiStepLR(optimizer, [2])

    saved, restored = build(), build()
    saved.base_lrs[0].fill_(0.7)
    state = schedule_state(saved)
    load_schedule_state(restored, state)
    assert restored.base_lrs == [torch.tensor(0.7)]
    assert restored.base_lrs[0] is not state["base_lrs"][0]


def test_tuples_come_back_as_tuples_and_functions_as_they_were():
    class Custom:
        def __init__(self, span):
            self.span, self.shape, self.limits = span, len, {"low": -float("inf"), "rule": max}

        def state_dict(self):
            return vars(self)

        def load_state_dict(self, state):
            vars(self).update(state)

    state = json.loads(json.dumps(schedule_state(Custom((1, (2, 3)))), allow_nan=False))
    assert state == {"span": [1, [2, 3]], "limits": {"low": {"__number__": "-inf"}}}
    restored = Custom((0, (0, 0)))
    load_schedule_state(restored, state)
    assert vars(restored) == {"span": (1, (2, 3)), "shape": len, "limits": {"low": -float("inf"), "rule": max}}


def test_a_name_that_would_hide_a_method_is_refused():
    scheduler = schedulers.StepLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 2)
    with pytest.raises(ValueError, match=r"^step is a method of StepLR, and no part of its state$"):
        load_schedule_state(scheduler, {**schedule_state(scheduler), "step": 5})
