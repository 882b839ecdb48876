"""A run can be killed at any instant, as often as one likes; what comes of it is the same to the bit."""

from __future__ import annotations

import random

import pytest

from tests.crash.runs import RUNS
from trainer_core.testing.crash.supervisor import Plan

PARTS = 8
LARGER = [name for name in RUNS if name != "smallest"]


def found(runs, plans):
    plans = list(plans)
    assert plans
    return [problem for plan in plans for problem in runs.killed(plan)]


@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_before_or_within_any_call_changes_nothing(rounds, part):
    runs = rounds("smallest")
    assert found(runs, runs.points()[part::PARTS]) == []


@pytest.mark.parametrize("name", LARGER)
def test_a_kill_at_some_call_of_a_larger_run_changes_nothing(rounds, more, name):
    runs = rounds(name)
    points = runs.points()
    sample = random.Random(f"calls of {name}").sample(points, min(len(points), 12 + more // 4))
    assert found(runs, sample) == []


@pytest.mark.parametrize("name", LARGER)
def test_a_run_that_is_killed_again_and_again_ends_the_same(rounds, more, name):
    runs, chance = rounds(name), random.Random(f"repeated kills of {name}")
    problems = []
    for _ in range(3 + more // 40):
        points = [chance.choice(runs.points()) for _ in range(chance.randint(2, 6))]
        problems += runs.killed(*points)
    assert problems == []


@pytest.mark.parametrize("name", RUNS)
def test_a_kill_at_an_instant_by_chance_changes_nothing(rounds, more, name):
    runs, chance = rounds(name), random.Random(f"instants of {name}")
    plans = [Plan(kill_after_seconds=chance.uniform(0, runs.seconds)) for _ in range(3 + more // 20)]
    assert found(runs, plans) == []


@pytest.mark.parametrize("name", RUNS)
def test_resuming_a_finished_run_trains_nothing_and_changes_nothing(rounds, name):
    runs = rounds(name)
    assert runs.resumed_when_finished() == []
