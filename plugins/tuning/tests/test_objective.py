"""From metrics to what is optimized."""

import logging

import pytest

from trainer_core import DataError
from trainer_core_tuning.objective import Objective, default_names, default_objective

SPEEDS = {"epoch": 1.0, "eval_runtime": 0.1, "eval_samples_per_second": 9.0, "eval_steps_per_second": 3.0}


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        ({"eval_loss": 0.5}, ["eval_loss"]),
        ({"eval_loss": 0.5, "eval_accuracy": 0.25, "eval_f1": 0.5}, ["eval_accuracy", "eval_f1"]),
        ({"eval_a_loss": 1.0, "eval_b_loss": 2.0}, ["eval_a_loss", "eval_b_loss"]),
        ({"eval_loss": 0.5, "eval_matrix": [1, 2], "eval_good": True}, ["eval_loss"]),
        ({"eval_loss": 0.5, "eval_mem_cpu_alloc_delta": 7, "eval_jit_compilation_time": 8.0}, ["eval_loss"]),
    ],
)
def test_the_default_is_the_sum_of_metrics_or_the_loss_where_it_is_alone(metrics, names):
    assert default_names(metrics | SPEEDS) == names
    assert default_objective(metrics | SPEEDS) == sum(metrics[name] for name in names)


def test_without_a_number_there_is_nothing_to_optimize():
    with pytest.raises(DataError, match="evaluations give no number to optimize, got epoch, eval_runtime"):
        default_objective(SPEEDS)


def test_the_objective_of_the_user_gets_a_copy():
    metrics = {"eval_loss": 1.0}
    assert Objective(lambda given: given.pop("eval_loss"), ["minimize"])(metrics) == [1.0]
    assert metrics == {"eval_loss": 1.0}


@pytest.mark.parametrize("given", [1, "1.5", [2.0]])
def test_what_is_like_a_number_is_one(given):
    assert Objective(lambda metrics: given, ["minimize"])({}) == [float(given[0] if isinstance(given, list) else given)]


@pytest.mark.parametrize(
    ("given", "directions", "told"),
    [
        (None, ["minimize"], "compute_objective: must return one number, got None. Return floats."),
        ([1.0, 2.0], ["minimize"], "compute_objective: must return one number, as direction says, got [1.0, 2.0]. "
         "Return as many, or pass direction=[...] with one for each."),
        (1.0, ["minimize"] * 2, "compute_objective: must return a list of 2 numbers, as direction says, got 1.0. "
         "Return as many, or pass direction=[...] with one for each."),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused(given, directions, told):
    with pytest.raises(DataError) as caught:
        Objective(lambda metrics: given, directions)({})
    assert str(caught.value) == told


def test_an_error_of_the_user_is_noted():
    with pytest.raises(KeyError) as caught:
        Objective(lambda metrics: metrics["eval_acuracy"], ["minimize"])({"eval_loss": 1.0, "eval_accuracy": 0.5})
    assert caught.value.__notes__ == ["raised in compute_objective, which got the metrics eval_loss, eval_accuracy"]


def said(caplog, function, direction, metrics):
    caplog.set_level(logging.INFO, "trainer_core.tuning")
    objective = Objective(function, [direction])
    objective(metrics)
    objective(metrics)
    return [record.getMessage() for record in caplog.records]


def test_the_default_is_said_once_and_a_likely_mistake_with_it(caplog):
    assert said(caplog, None, "minimize", {"eval_loss": 1.0, "eval_accuracy": 0.5}) == [
        "objective: eval_accuracy, to minimize.",
        "direction: is 'minimize', and the default objective is the sum of eval_accuracy. Did you mean 'maximize'?",
    ]


def test_the_right_direction_is_not_doubted(caplog):
    assert said(caplog, None, "minimize", {"eval_loss": 1.0}) == ["objective: eval_loss, to minimize."]


def test_nothing_is_said_of_the_users_own(caplog):
    assert said(caplog, lambda metrics: 1.0, "minimize", {"eval_accuracy": 1.0}) == []
