"""What a step, an import, a resume and a save cost, in counts that are the same on every machine."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip("benchmarks.counts", reason="run from the root of the repository")

from benchmarks import __main__ as command
from benchmarks.contenders import BARE, OURS, OURS_WITH_USERS_OPTIMIZER, TUNED, ours
from benchmarks.counts import (
    RECIPE,
    bytes_of_a_save,
    calls_in_the_model,
    frames_to_forward,
    items_fetched_on_resume,
    python_calls_per_step,
)
from benchmarks.processes import probe
from benchmarks.workloads import DeepNetwork, TinyNetwork


class Ender:
    def on_step_end(self, trainer):
        pass


class Teller:
    def on_train_end(self, trainer):
        pass


@pytest.fixture(scope="module")
def calls():
    return {
        "bare": python_calls_per_step(BARE.train),
        "tuned": python_calls_per_step(TUNED.train),
        "ours": python_calls_per_step(OURS.train),
    }


def test_a_step_makes_fewer_python_calls_than_a_tuned_plain_loop(calls):
    assert calls["ours"] < calls["tuned"] < calls["bare"]


def test_a_step_with_the_users_optimizer_and_schedule_makes_fewer_calls_than_a_plain_loop(calls):
    assert python_calls_per_step(OURS_WITH_USERS_OPTIMIZER.train) < calls["bare"]


def test_a_step_with_clipping_and_accumulation_makes_fewer_calls_than_a_plain_loop():
    recipe = replace(RECIPE, clip=1.0, accumulation=4)
    assert python_calls_per_step(OURS.train, recipe) < python_calls_per_step(BARE.train, recipe)


def test_a_plugin_that_implements_no_step_hook_costs_no_call(calls):
    assert python_calls_per_step(ours(plugins=[Teller()])) == calls["ours"]


def test_a_step_hook_costs_one_call_and_one_more_for_each_that_implements_it(calls):
    assert python_calls_per_step(ours(plugins=[Ender()])) == calls["ours"] + 2
    assert python_calls_per_step(ours(plugins=[Ender(), Ender()])) == calls["ours"] + 3


def test_modules_that_a_step_does_not_call_cost_it_nothing(calls):
    wide = replace(RECIPE, build=partial(TinyNetwork, idle_modules=85))
    assert len(list(wide.model().modules())) == 88
    assert python_calls_per_step(OURS.train, wide) == calls["ours"]


def test_a_deep_model_costs_what_its_forward_and_torchs_optimizer_cost(calls):
    deep = replace(RECIPE, build=DeepNetwork)
    assert len(list(deep.model().modules())) == 88
    more_in_model = calls_in_the_model(deep) - calls_in_the_model(RECIPE)
    more_in_loop = python_calls_per_step(TUNED.train, deep) - calls["tuned"] - more_in_model
    assert python_calls_per_step(OURS.train, deep) - calls["ours"] - more_in_model == more_in_loop


def test_at_most_five_frames_of_ours_stand_between_train_and_forward():
    assert len(frames_to_forward()) <= 5, frames_to_forward()


def test_the_first_batch_after_a_resume_loads_its_own_items_alone():
    assert items_fetched_on_resume(0) == items_fetched_on_resume(1000) == 32


def test_import_adds_few_modules_and_neither_it_nor_a_run_imports_the_compiler():
    probed = probe("imports", "trainer_core")
    assert probed["modules_imported"] < 60
    assert not probed["has_dynamo"]


def test_a_save_writes_no_more_after_a_thousand_rows_than_after_one():
    few, many = bytes_of_a_save(1), bytes_of_a_save(1000)
    assert abs(many - few) <= 64  # digits of offsets and times


@pytest.mark.slow
def test_the_benchmark_measures_every_case(tmp_path, capsys):
    file = tmp_path / "figures.json"
    sections = [name for name in command.SECTIONS if name not in ("counts", "processes")]  # the tests above read these
    assert command.main(["--quick", "--json", str(file), "--only", *sections]) == 0
    rows = json.loads(file.read_text())["rows"]
    missing = [(row["case"], row["note"]) for row in rows if row["value"] is None]
    assert not missing
    assert "trainer_core" in capsys.readouterr().out
