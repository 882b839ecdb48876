"""What single features cost a step: hooks, logging with a console, and modules that nobody calls."""

from __future__ import annotations

import contextlib
import io
import timeit
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from benchmarks.contenders import OURS, TUNED, Train, our_arguments, ours
from benchmarks.report import Row
from benchmarks.training import Budget
from benchmarks.turns import Estimate, difference, take_turns
from benchmarks.workloads import Recipe, TinyNetwork
from trainer_core import PluginError, SettingsError, Trainer

HOOKS: Final = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end")
"""Hooks of an update with one micro-batch."""


def overhead_rows(budget: Budget) -> Iterator[Row]:
    """Gives the figures of all cases, in microseconds a step or a hook.

    A difference of two noisy figures needs more turns than a ratio, and shorter ones.
    """
    recipe, rounds = replace(budget.tiny, updates=budget.updates // 2), 3 * budget.rounds
    yield from hook_rows(recipe, rounds)
    yield from logging_rows(recipe, rounds)
    yield from module_rows(recipe, rounds)


def hook_rows(recipe: Recipe, rounds: int, plugins: int = 50) -> Iterator[Row]:
    """What no-op plugins on every step hook cost, a hook and plugin."""
    many = [type("Idle", (), dict.fromkeys(HOOKS, _nothing))() for _ in range(plugins)]
    silent = [type("Silent", (), {"on_train_end": _nothing})() for _ in range(plugins)]
    trains = {"none": ours(), "many": ours(plugins=many), "silent": ours(plugins=silent)}
    turns = take_turns({name: seconds_of(train, recipe) for name, train in trains.items()}, rounds)
    case, name, unit = "a no-op plugin on every step hook", "trainer_core", "us a hook"
    scale = 1e6 / plugins / len(HOOKS)
    yield Row(case, name, unit, difference(turns, "many", "none", scale), 0.1, "in a run")
    yield Row(case, name, unit, _dispatch(Trainer(recipe.model(), our_arguments(recipe), plugins=many), plugins), 0.1,
              "the compiled tuple by itself")  # fmt: skip
    note = "of hooks that it does not implement; the counts say 0 exactly"
    yield Row(case, name, unit, difference(turns, "silent", "none", scale), None, note)


def logging_rows(recipe: Recipe, rounds: int) -> Iterator[Row]:
    """What the console costs when every update is logged, on a terminal and in a file."""
    case, name, unit = "log every update", "trainer_core", "us a step"
    logged: dict[str, Any] = {"logging_strategy": "steps", "logging_steps": 1}
    on, off = (
        ours(block_plugins=["checkpointing"], **logged),
        ours(block_plugins=["checkpointing", "console"], **logged),
    )
    contenders = {
        "unlogged": seconds_of(ours(), recipe),
        "off": seconds_of(off, recipe),
        "terminal": seconds_of(on, recipe, Screen),
        "file": seconds_of(on, recipe, io.StringIO),
    }
    try:
        contenders["terminal"]()
    except (PluginError, SettingsError, ImportError) as error:
        yield Row(case, name, unit, None, 25, str(error).split(". ")[0])
        return
    turns = take_turns(contenders, rounds)
    yield Row(case, name, unit, difference(turns, "terminal", "off"), 25, "console on a terminal, over off")
    yield Row(case, name, unit, difference(turns, "file", "off"), 25, "console into a file, over off")
    yield Row(case, name, unit, difference(turns, "off", "unlogged"), None, "logging, over none")


class Screen(io.StringIO):
    """Takes what a console prints and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def module_rows(recipe: Recipe, rounds: int) -> Iterator[Row]:
    """What a step costs more when 85 more modules stand in the model, idle, so that the arithmetic is the same."""
    wide = replace(recipe, build=partial(TinyNetwork, idle_modules=85))
    turns = take_turns(
        {f"{c.name}, {size}": seconds_of(c.train, r) for c in (TUNED, OURS) for size, r in ((3, recipe), (88, wide))},
        rounds,
    )
    for name in ("tuned", "trainer_core"):
        more = difference(turns, f"{name}, 88", f"{name}, 3")
        note = "noise; the counts say 0 exactly" if name == "trainer_core" else "noise"
        yield Row("88 modules over 3, beyond the arithmetic", name, "us a step", more, None, note)


def seconds_of(train: Train, recipe: Recipe, output: Callable[[], io.StringIO] | None = None) -> Callable[[], float]:
    """Gives a function that trains once, with what is printed caught, and returns CPU seconds an update."""

    def turn() -> float:
        model = recipe.model()
        with contextlib.redirect_stdout(output()) if output is not None else contextlib.nullcontext():
            train(model, recipe)
        return recipe.seconds(model.clock)

    return turn


def _dispatch(trainer: Trainer, plugins: int, calls: int = 2000) -> Estimate:
    """Gives the microseconds that one implementation of a hook costs, called through the bus."""
    fire = trainer.bus.step_hooks()[0].on_step_end
    assert fire is not None
    seconds = timeit.repeat(lambda: fire(trainer), number=calls, repeat=9)
    return Estimate.of([second / calls / plugins * 1e6 for second in seconds])


def _nothing(self: object, trainer: Trainer) -> None:
    return None
