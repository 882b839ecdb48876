"""A disk that fails a call loses no checkpoint and leaves no half; the run goes on, or ends with our error."""

from __future__ import annotations

import random

import pytest

from tests.crash.runs import RUNS
from trainer_core.testing.crash.matrix import FAULTS

PARTS = 8


def plans(runs, more, chance):
    """Gives plans for every call: one fault each, by chance, in the long form all of them."""
    for at, call in runs.numbered():
        faults = [fault for fault in FAULTS if fault.action == "fail" or call.can_split]
        for fault in faults if more else chance.sample(faults, 1):
            yield fault.at_call(at)


def found(runs, plans):
    plans = list(plans)
    assert plans
    return [problem for plan in plans for problem in runs.disturbed(plan)]


@pytest.mark.parametrize("part", range(PARTS))
def test_any_call_may_fail(rounds, more, part):
    runs = rounds("smallest")
    assert found(runs, list(plans(runs, more, random.Random("faults")))[part::PARTS]) == []


@pytest.mark.parametrize("policy", ["prune", "stop"])
def test_some_call_may_fail_under_another_policy(rounds, more, policy):
    runs, chance = rounds("smallest", on_save_error=policy), random.Random(f"faults under {policy}")
    all_plans = list(plans(runs, more, chance))
    assert found(runs, chance.sample(all_plans, 12 + more // 20)) == []


@pytest.mark.parametrize("name", [name for name in RUNS if name != "smallest"])
def test_some_call_of_a_larger_run_may_fail(rounds, more, name):
    runs, chance = rounds(name), random.Random(f"faults of {name}")
    all_plans = list(plans(runs, more, chance))
    assert found(runs, chance.sample(all_plans, 8 + more // 10)) == []
