"""Schedules have the original's values at every step, and their state is JSON."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from trainer_core.errors import CheckpointError, SettingsError
from trainer_core.optim.schedules import (
    SCHEDULES,
    LearningRateSchedule,
    PlateauSchedule,
    create_schedule,
    schedule_factor,
    warmup_steps,
)

CASES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.75}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"power": 2.5, "lr_end": 1e-4}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 7}),
    ("cosine_with_min_lr", {"min_lr": 1e-5}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1, "num_cycles": 0.8}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-5}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "num_cycles": 0.8, "warmup_lr_rate": 0.05}),
    ("warmup_stable_decay", {"num_decay_steps": 9}),
    ("warmup_stable_decay", {"num_decay_steps": 9, "num_stable_steps": 4, "min_lr_ratio": 0.1}),
    *(
        ("warmup_stable_decay", {"num_decay_steps": 9, "warmup_type": up, "decay_type": down, "num_cycles": 0.4})
        for up, down in [("linear", "1-sqrt"), ("cosine", "linear"), ("1-sqrt", "cosine")]
    ),
]


def fake(name="linear", **changes):
    values = {
        "learning_rate": 1e-3,
        "lr_scheduler_type": name,
        "lr_scheduler_kwargs": None,
        "warmup_ratio": 0.0,
        "warmup_steps": 0,
        "greater_is_better": None,
        "metric_for_best_model": None,
    }
    return SimpleNamespace(**{**values, **changes})


def sgd(*rates):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (1e-3,)], 1e-3)


def rates_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_the_cases_cover_every_name():
    assert {name for name, _ in CASES} | {"reduce_lr_on_plateau"} == set(SCHEDULES)


@pytest.mark.parametrize("max_steps", [1, 13, 40])
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")  # the original's, always
def test_every_step_of_every_schedule_has_the_originals_rates(name, options, max_steps):
    transformers = pytest.importorskip("transformers")
    for warmup in {0, min(1, max_steps - 1), min(10, max_steps // 2)} if SCHEDULES[name].warms_up else {0}:
        if name == "warmup_stable_decay" and "num_stable_steps" not in options and warmup + 9 > max_steps:
            continue
        ours, theirs = sgd(1e-3, 2e-3), sgd(1e-3, 2e-3)
        schedule = create_schedule(ours, fake(name, lr_scheduler_kwargs=options, warmup_steps=warmup), max_steps)
        original = transformers.get_scheduler(name, theirs, warmup, max_steps, scheduler_specific_kwargs=dict(options))
        for step in range(max_steps + 5):
            assert rates_of(ours) == rates_of(theirs) == schedule.get_last_lr(), (step, warmup)
            ours.step(), theirs.step()
            schedule.step(), original.step()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CASES), st.integers(0, 30), st.integers(10, 50), st.integers(0, 60))
def test_a_factor_is_finite_and_not_negative_at_any_step(case, warmup, max_steps, step):
    name, options = case
    if name == "warmup_stable_decay" and warmup + 9 > max_steps:
        return
    args = fake(name, lr_scheduler_kwargs=options, warmup_steps=warmup if SCHEDULES[name].warms_up else 0)
    factor = schedule_factor(args, max_steps)
    assert 0.0 <= factor(step) < math.inf
    assert type(factor(step)) is float


def test_a_polynomial_that_is_all_warm_up_ends_at_lr_end():
    factor = schedule_factor(fake("polynomial", warmup_steps=5), 5)
    assert [factor(step) for step in (0, 4, 5, 6)] == [0.0, 0.8, 1e-7 / 1e-3, 1e-7 / 1e-3]


@pytest.mark.parametrize(
    ("steps", "ratio", "expected"),
    [
        (0, 0.0, 0),
        (7, 0.5, 7),
        (2.7, 0.0, 2),
        (0.1, 0.0, 10),
        (0.001, 0.0, 1),
        (0, 0.25, 25),
        (0, 1.0, 100),
        (1, 0.9, 1),
    ],
)
def test_warm_up_is_in_steps_from_one_and_a_share_below(steps, ratio, expected):
    assert warmup_steps(fake(warmup_steps=steps, warmup_ratio=ratio), 100) == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"name": "linaer"},
            "lr_scheduler_type: unknown schedule, got 'linaer'. Did you mean 'linear'? Use one of linear, cosine, "
            "cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau, "
            "cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay.",
        ),
        (
            {"name": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}},
            "lr_scheduler_kwargs.num_cycle: unknown option, got 2. Did you mean 'num_cycles'? "
            "'cosine' takes num_cycles.",
        ),
        (
            {"lr_scheduler_kwargs": {"power": 2}},
            "lr_scheduler_kwargs.power: unknown option, got 2. 'linear' takes no options.",
        ),
        (
            {"name": "cosine", "lr_scheduler_kwargs": {"num_cycles": "2"}},
            "lr_scheduler_kwargs.num_cycles: must be a number, got '2'. Correct it.",
        ),
        (
            {"name": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2.5}},
            "lr_scheduler_kwargs.num_decay_steps: must be a whole number of at least 0, got 2.5. Correct it.",
        ),
        (
            {"name": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "sqrt"}},
            "lr_scheduler_kwargs.decay_type: must be one of linear, cosine, 1-sqrt, got 'sqrt'. Correct it.",
        ),
        (
            {"name": "warmup_stable_decay"},
            "lr_scheduler_kwargs.num_decay_steps: is needed, got None. Correct it for 'warmup_stable_decay'.",
        ),
        (
            {"name": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 95}, "warmup_steps": 6},
            "lr_scheduler_kwargs.num_decay_steps: 6 steps of warm-up and 95 of decay do not fit into the run, "
            "got max_steps=100. Correct it for 'warmup_stable_decay'.",
        ),
        (
            {"name": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-3}},
            "lr_scheduler_kwargs.lr_end: must be below learning_rate 0.001, got 0.001. Correct it for 'polynomial'.",
        ),
        (
            {"name": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}},
            "lr_scheduler_kwargs.timescale: must be a number above 0, got 0. Correct it.",
        ),
        (
            {"name": "cosine_with_min_lr"},
            "lr_scheduler_kwargs.min_lr: exactly one of min_lr and min_lr_rate is needed, got None and None. "
            "Correct it for 'cosine_with_min_lr'.",
        ),
        (
            {"name": "constant", "warmup_steps": 10},
            "warmup_steps: 'constant' has no warm-up, got 10. "
            "Leave it out, or use lr_scheduler_type='constant_with_warmup'.",
        ),
        (
            {"name": "reduce_lr_on_plateau", "warmup_ratio": 0.1},
            "warmup_ratio: 'reduce_lr_on_plateau' has no warm-up, got 0.1. "
            "Leave it out, or use lr_scheduler_type='constant_with_warmup'.",
        ),
        (
            {"name": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 1.5, "mode": "min"}},
            "lr_scheduler_kwargs: ReduceLROnPlateau refuses them: Factor should be < 1.0., "
            "got {'factor': 1.5, 'mode': 'min'}. Correct them.",
        ),
        (
            {"name": "reduce_lr_on_plateau", "metric_for_best_model": "eval_wonder"},
            "greater_is_better: the name of the metric 'eval_wonder' does not tell, got None. "
            "Set it, or lr_scheduler_kwargs={'mode': 'min'} or 'max'.",
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_remedy(changes, problem):
    with pytest.raises(SettingsError) as caught:
        create_schedule(sgd(), fake(**changes), 100)
    assert caught.value.problems == [problem]


def test_all_wrong_options_are_told_at_once():
    args = fake("constant", warmup_steps=3, lr_scheduler_kwargs={"a": 1, "b": 2})
    with pytest.raises(SettingsError) as caught:
        schedule_factor(args, 10)
    assert len(caught.value.problems) == 3


def test_the_formula_needs_no_optimizer():
    assert [schedule_factor(fake(warmup_steps=2), 10)(step) for step in (0, 1, 2, 6, 10)] == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert schedule_factor(fake("reduce_lr_on_plateau"), 10)(9) == 1.0


def test_rates_are_python_floats_and_only_the_rate_of_a_group_changes():
    optimizer = sgd(1e-3, 4e-3)
    before = [dict(group) for group in optimizer.param_groups]
    schedule = create_schedule(optimizer, fake(), 4)
    schedule.step()
    assert [type(rate) for rate in rates_of(optimizer)] == [float, float]
    assert rates_of(optimizer) == [0.75e-3, 3e-3]
    for group, old in zip(optimizer.param_groups, before, strict=True):
        assert {**group, "lr": old["lr"]} == {**old, "initial_lr": old["lr"]}


def test_a_rate_that_is_a_tensor_stays_that_tensor():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=torch.tensor(1e-3))
    rate = optimizer.param_groups[0]["lr"]
    LearningRateSchedule(optimizer, lambda step: 0.5**step).step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.5e-3)


def test_a_second_schedule_on_an_optimizer_begins_at_its_first_rate():
    optimizer = sgd(1e-3)
    first = create_schedule(optimizer, fake(), 2)
    first.step(), first.step()
    assert rates_of(optimizer) == [0.0]
    create_schedule(optimizer, fake(), 2)
    assert rates_of(optimizer) == [1e-3]


def test_a_group_that_is_added_during_the_run_follows_from_the_next_step():
    optimizer = sgd(1e-3)
    schedule = create_schedule(optimizer, fake(), 4)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 8.0})
    schedule.step()
    assert rates_of(optimizer) == [0.75e-3, 6.0]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_schedule_goes_on_from_its_json_state(name, options):
    args = fake(name, lr_scheduler_kwargs=options, warmup_steps=3 if SCHEDULES[name].warms_up else 0)
    whole, cut = sgd(1e-3, 2e-3), sgd(1e-3, 2e-3)
    schedule = create_schedule(whole, args, 20)
    for _ in range(7):
        schedule.step()
    state = json.loads(json.dumps(schedule.state_dict(), allow_nan=False))
    resumed = create_schedule(cut, args, 20)
    resumed.load_state_dict(state)
    for _ in range(5):
        assert rates_of(cut) == rates_of(whole)
        schedule.step(), resumed.step()


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (
            {"last_epoch": 3},
            "LearningRateSchedule: the state is of another schedule, got ['last_epoch']. "
            "Resume with the checkpoint's settings.",
        ),
        (
            {"last_step": 3, "base_lrs": [1.0, 2.0]},
            "LearningRateSchedule: the optimizer has 1 parameter groups, got a state of 2. "
            "Resume with the checkpoint's settings.",
        ),
    ],
)
def test_a_state_of_another_run_is_refused_and_changes_nothing(state, problem):
    schedule = create_schedule(sgd(), fake(), 4)
    with pytest.raises(CheckpointError) as caught:
        schedule.load_state_dict(state)
    assert str(caught.value) == problem
    assert schedule.state_dict() == {"last_step": 0, "base_lrs": [1e-3]}


METRICS = [1.0, 0.9, 0.95, 0.96, 0.97, 0.5, 0.6, 0.7, math.nan, 0.8, 0.4]


def test_a_plateau_has_torchs_rates_and_ignores_steps():
    options = {"patience": 1, "factor": 0.5, "cooldown": 1}
    ours, theirs = sgd(1e-3, 2e-3), sgd(1e-3, 2e-3)
    schedule = create_schedule(ours, fake("reduce_lr_on_plateau", lr_scheduler_kwargs=options), 10)
    torchs = torch_schedulers.ReduceLROnPlateau(theirs, **options)
    for metric in METRICS:
        schedule.step()
        schedule.on_metric(metric), torchs.step(metric)
        assert rates_of(ours) == rates_of(theirs) == schedule.get_last_lr()
    assert rates_of(ours) == [0.25e-3, 0.5e-3]
    assert schedule.base_lrs == [1e-3, 2e-3]


@pytest.mark.parametrize("cut", range(len(METRICS)))
def test_a_plateau_goes_on_from_its_json_state(cut):
    args = fake("reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 1, "cooldown": 1})
    whole, resumed = sgd(), sgd()
    schedule, again = create_schedule(whole, args, 10), create_schedule(resumed, args, 10)
    for metric in METRICS[:cut]:
        schedule.on_metric(metric)
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict(), allow_nan=False)))
    for metric in METRICS[cut:]:
        assert rates_of(resumed) == rates_of(whole)
        schedule.on_metric(metric), again.on_metric(metric)
    assert again.state_dict() == schedule.state_dict()


@pytest.mark.parametrize(
    ("greater", "metric", "mode"),
    [
        (None, None, "min"),
        (None, "eval_loss", "min"),
        (None, "accuracy", "max"),
        (True, "x", "max"),
        (False, "x", "min"),
    ],
)
def test_a_plateau_follows_the_direction_of_the_best_model_metric(greater, metric, mode):
    args = fake("reduce_lr_on_plateau", greater_is_better=greater, metric_for_best_model=metric)
    schedule = create_schedule(sgd(), args, 10)
    assert isinstance(schedule, PlateauSchedule)
    assert schedule.scheduler.mode == mode


def test_a_users_plateau_is_wrapped_as_it_is():
    optimizer = sgd()
    schedule = PlateauSchedule(torch_schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.1))
    schedule.on_metric(1.0), schedule.on_metric(torch.tensor(2.0))
    assert rates_of(optimizer) == [pytest.approx(1e-4)]


def test_a_formula_ignores_metrics():
    schedule = create_schedule(sgd(), fake(), 4)
    schedule.on_metric(0.1)
    assert schedule.last_step == 0
