"""A power cut loses no checkpoint that was announced, whatever of the unflushed calls is lost with it."""

from __future__ import annotations

import pytest

from tests.crash.runs import RUNS
from trainer_core.testing.crash.disk_model import Disk, anything
from trainer_core.testing.crash.matrix import SURVIVALS

PARTS = 8

pytestmark = pytest.mark.usefixtures("sees_all_calls")


def cuts(runs, instants, subsets):
    problems = []
    for at in instants:
        for survival in [*SURVIVALS, *(anything(at * 1000 + number) for number in range(subsets))]:
            problems += runs.power_cut(at, survival)
    return problems


@pytest.mark.parametrize("name", RUNS)
def test_the_model_of_the_disk_holds_what_the_disk_holds(rounds, name):
    runs = rounds(name)
    everything = Disk(runs.account.calls).after(len(runs.account.calls), lambda operation: 1.0)
    real = {path.relative_to(runs.kept).as_posix(): path for path in runs.kept.rglob("*")}
    assert everything.entries == {name: path.read_bytes() if path.is_file() else None for name, path in real.items()}


@pytest.mark.parametrize("part", range(PARTS))
def test_a_power_cut_before_any_call_loses_nothing_that_was_announced(rounds, more, part):
    runs = rounds("smallest")
    instants = range(1, len(runs.account.calls) + 1)[part::PARTS]
    assert cuts(runs, instants, subsets=1 + more // 500) == []


@pytest.mark.parametrize("name", [name for name in RUNS if name != "smallest"])
def test_a_power_cut_of_a_larger_run_loses_nothing_that_was_announced(rounds, more, name):
    runs = rounds(name)
    instants = range(1, len(runs.account.calls) + 1, max(1, 47 - more // 25))
    assert cuts(runs, instants, subsets=1) == []
