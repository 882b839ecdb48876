"""What does not depend on the machine: calls, frames, modules, items and bytes, exact and therefore tested.

Python calls are counted by `sys.setprofile` between two forwards of a run, as times are (see `workloads.Clock`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.contenders import BARE, OURS, OURS_WITH_USERS_OPTIMIZER, TUNED, Train, our_arguments, ours
from benchmarks.processes import probe
from benchmarks.report import Row
from benchmarks.turns import Estimate
from benchmarks.workloads import Clock, Recipe, TinyNetwork
from trainer_core import PluginError, SettingsError, Trainer
from trainer_core.data.collation import default_data_collator
from trainer_core.data.loaders import build_train_loader
from trainer_core.data.reading import stream

WARM, MEASURED = 16, 32
RECIPE = Recipe(updates=WARM + MEASURED + 2, warm_updates=WARM)
"""Calls are counted over 32 updates in the middle, which hold as many timed ones as any other 32."""

OUR_FOLDER = str(Path(sys.modules[Trainer.__module__].__file__ or "").parent)
CHECKPOINTING = ["logging", "console"]
"""What is blocked where a save is counted."""


class CallCounter(Clock):
    """Counts calls of Python functions between its two readings."""

    calls = 0

    def tick(self) -> None:
        if self.forwards == self.first:
            sys.setprofile(self._count)
        elif self.forwards == self.last:
            sys.setprofile(None)
        self.forwards += 1

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        self.calls += event == "call"


def python_calls_per_step(train: Train, recipe: Recipe = RECIPE) -> float:
    """Gives the calls of Python functions an update: the contender's, the model's and torch's."""
    model = recipe.model()
    counter = model.clock = CallCounter(WARM * recipe.accumulation, (WARM + MEASURED) * recipe.accumulation)
    gc.disable()  # a collection in the middle calls finalizers of whatever was left behind before
    try:
        train(model, recipe)
    finally:
        gc.enable()
        sys.setprofile(None)
    return counter.calls / MEASURED - recipe.accumulation  # the clock's own tick is a call a forward


def calls_in_the_model(recipe: Recipe) -> int:
    """Gives the calls of Python functions that one forward makes."""
    model, inputs = recipe.model(), recipe.tensors()[: recipe.batch_size]
    counter = CallCounter()
    sys.setprofile(counter._count)
    try:
        model(*inputs)
    finally:
        sys.setprofile(None)
    return counter.calls - 2  # the tick, and switching off


def frames_to_forward() -> list[str]:
    """Gives our functions that stand between `train()` and the model's forward, outermost first."""
    found: list[str] = []

    class Network(TinyNetwork):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            found[:] = [frame.f_code.co_name for frame in _stack() if frame.f_code.co_filename.startswith(OUR_FOLDER)]
            return super().forward(x, labels)

    recipe = Recipe(build=Network, updates=1, warm_updates=0)
    OURS.train(recipe.model(), recipe)
    return found[found.index("train") + 1 :]


def _stack() -> list[FrameType]:
    frames, frame = [], sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        frames.append(frame)
    return frames[::-1]


class Counted(Dataset[Any]):
    """A dataset that counts the items that were fetched."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.fetched = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.fetched += 1
        return torch.zeros(1), 0


def items_fetched_on_resume(position: int) -> int:
    """Gives how many items are fetched for the first micro-batch after a cut at micro-batch `position`."""
    dataset = Counted(32 * (position + 2))
    arguments = our_arguments(Recipe())
    loader = build_train_loader(dataset, default_data_collator, arguments, device=torch.device("cpu"))
    next(stream(loader).epoch(0, position))
    return dataset.fetched


class SaveMeter:
    """A plugin that logs `rows` rows before the first save and one before the second, and counts their bytes."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.at_entry = 0
        self.written: list[int] = []

    def on_step_end(self, trainer: Trainer) -> None:
        for _ in range(self.rows if trainer.state.global_step == 1 else 1):
            trainer.log({"loss": 0.125, "learning_rate": 0.001})

    def on_phase(self, trainer: Trainer, phase: Any) -> None:
        if phase.name == "SAVE":
            self.at_entry = _bytes_written()

    def on_save(self, trainer: Trainer) -> None:
        self.written.append(_bytes_written() - self.at_entry)


def bytes_of_a_save(rows: int) -> int:
    """Gives the bytes that the second of two saves writes, with `rows` logged before the first one (Linux).

    Raises:
        PluginError, SettingsError: the checkpointing plugin is not there.
    """
    meter, recipe = SaveMeter(rows), Recipe(updates=4, warm_updates=0)
    ours(plugins=[meter], block_plugins=CHECKPOINTING, save_strategy="steps", save_steps=2)(recipe.model(), recipe)
    return meter.written[1]


def _bytes_written() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(lines[1].split()[1])


def count_rows() -> Iterator[Row]:
    """Gives the counts as rows of the table."""
    case = "Python calls a step"
    for name, train in (("bare", BARE.train), ("tuned", TUNED.train), ("trainer_core", OURS.train)):
        yield _row(case, name, "calls", python_calls_per_step(train))
    users, limit = python_calls_per_step(OURS_WITH_USERS_OPTIMIZER.train), python_calls_per_step(BARE.train)
    yield _row(case, "trainer_core", "calls", users, limit, "with the user's AdamW and LambdaLR")
    yield _row("our frames from train() to forward", "trainer_core", "frames", len(frames_to_forward()), 5)
    idle = python_calls_per_step(OURS.train, _with(idle_modules=85)) - python_calls_per_step(OURS.train)
    yield _row("88 modules over 3, Python calls a step", "trainer_core", "calls", idle, 0, "85 modules idle")
    probed = probe("imports", "trainer_core")
    yield _row("modules of import trainer_core", "trainer_core", "modules", probed["modules_imported"], 59)
    note = "without torch._dynamo" if not probed["has_dynamo"] else "torch._dynamo among them"
    yield _row("modules to the first forward", "trainer_core", "modules", probed["modules_at_the_end"], None, note)
    fetched = items_fetched_on_resume(1000)
    yield _row("items fetched on resume at micro-batch 1,000", "trainer_core", "items", fetched, 32)
    yield from _save_rows()


def _save_rows() -> Iterator[Row]:
    case = "bytes written by a save"
    try:
        few, many = bytes_of_a_save(1), bytes_of_a_save(1000)
    except (PluginError, SettingsError, OSError, IndexError) as error:
        yield Row(case, "trainer_core", "bytes", None, None, str(error).split(". ")[0])
        return
    yield _row(case, "trainer_core", "bytes", few, None, "after a row was logged")
    yield _row(case, "trainer_core", "bytes", many, few * 1.01, "after 1,000 rows were logged")


def _row(case: str, name: str, unit: str, value: float, target: float | None = None, note: str = "") -> Row:
    return Row(case, name, unit, Estimate(value, value, value), target, note)


def _with(**options: Any) -> Recipe:
    return replace(RECIPE, build=partial(TinyNetwork, **options))
