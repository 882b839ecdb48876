"""The cases about saves: the time that training waits, and memory, against `torch.save` with a flush of the same state.

The contenders take turns inside one run, so that all of them save the same tensors to the same disk within seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.processes import probe
from benchmarks.report import Row
from benchmarks.turns import Estimate, ratio
from trainer_core import Phase, Signal, Trainer, TrainingArguments

NAMES: Final = {
    "behind": "trainer_core, behind",
    "at once": "trainer_core, at once",
    "torch.save": "torch.save, flushed",
}
TARGETS: Final = {"behind": 0.45, "at once": 1.0}


def save_rows(million_parameters: int, rounds: int) -> Iterator[Row]:
    """Gives what saves of a model of that size with the state of AdamW cost."""
    result = probe("saves", str(million_parameters), str(rounds))
    seconds, first = result["seconds"], result["first_seconds"]
    case = f"a save of {million_parameters} million parameters with AdamW, {result['megabytes']:.0f} MB"
    for name, label in NAMES.items():
        best = f"best {min(seconds[name]):.2f} s, median {Estimate.of(seconds[name]).median:.2f} s, "
        note = best + f"the first {first[name]:.2f} s"
        yield Row(case, label, "x torch.save", ratio(seconds, name, "torch.save"), TARGETS.get(name), note)
    for name, label in NAMES.items():
        peak = Estimate.of([max(result["rise_mb"][name]) / result["megabytes"]])
        note = "the copies, kept until the run ends" if name == "behind" else ""
        yield Row("peak memory of a save, beyond the training's", label, "x state", peak, None, note)
    added = Estimate.of([one - other for one, other in zip(seconds["beside"], seconds["update"], strict=True)])
    in_save = Estimate(*(number / Estimate.of(seconds["torch.save"]).median for number in _parts(added)))
    told = f"{added.median * 1000:.0f} ms; it takes {Estimate.of(seconds['update']).median:.2f} s by itself"
    yield Row("what a save adds to the update beside it", NAMES["behind"], "x torch.save", in_save, None, told)
    written = Estimate.of(seconds["written"])
    yield Row("until a save is durable", NAMES["behind"], "s", written, None, "while the training goes on")


def _parts(value: Estimate) -> tuple[float, float, float]:
    return value.median, value.low, value.high


class Wide(nn.Module):
    """So many parameters, of which a forward reads a few."""

    def __init__(self, parameters: int, parts: int = 20) -> None:
        super().__init__()
        shape = (parameters // parts // 100, 100)
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(shape) * 0.02) for _ in range(parts)])

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = sum(part[:2] @ x.mean(0) for part in self.parts)
        return {"loss": (logits - labels.float().mean()).square().mean()}


class Turns:
    """A plugin that lets the contenders save by turns, one an update, and measures them.

    A round has five updates: `torch.save`, a save at once, one behind the training, the update beside that, and an
    update for itself. The first round is kept apart: it pays for memory that is used for the first time.
    """

    after = ("checkpointing",)
    ORDER: Final = ("torch.save", "at once", "behind", "beside", "update")

    def __init__(self, folder: Path, memory: Any) -> None:
        self.folder, self.memory = folder, memory
        self.seconds: dict[str, list[float]] = {name: [] for name in (*self.ORDER, "written")}
        self.rise_mb: dict[str, list[float]] = {name: [] for name in self.ORDER}
        self.turn, self.started, self.submitted = "", 0.0, 0.0

    def on_step_begin(self, trainer: Trainer) -> None:
        step = trainer.state.global_step
        is_last = step == trainer.state.max_steps - 1  # which is saved at once, whoever asks
        self.turn = "" if is_last else self.ORDER[step % len(self.ORDER)]
        self._begin()

    def on_step_end(self, trainer: Trainer) -> None:
        saver: Any = trainer.bus.members["checkpointing"].plugin
        saver = saver._saver
        if self.turn in ("beside", "update"):
            self._end()
        if self.turn == "beside":
            saver.flight.end.result()
            self.seconds["written"].append(perf_counter() - self.submitted)
        if self.turn == "torch.save":
            self._begin()
            self._save_with_torch(trainer)
            self._end()
            (self.folder / "torch.pt").unlink()
        elif self.turn in ("at once", "behind"):
            wanted = {"checkpoint_async": self.turn == "behind"}
            saver.settings = saver.settings.model_copy(update=wanted)
            trainer.request(Signal.SAVE, by="benchmark", why=self.turn)

    def on_phase(self, trainer: Trainer, phase: Phase) -> None:
        if phase is Phase.SAVE:
            self._begin()
            self.submitted = self.started
        elif self.turn in ("at once", "behind"):
            self._end()
            self.turn = ""

    def _begin(self) -> None:
        self.memory.forget_peak()
        self.started = perf_counter()

    def _end(self) -> None:
        self.seconds[self.turn].append(perf_counter() - self.started)
        self.rise_mb[self.turn].append(self.memory.rise_mb())

    def _save_with_torch(self, trainer: Trainer) -> None:
        file = self.folder / "torch.pt"
        assert trainer.optimizer is not None
        torch.save({"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}, file)
        for path in (file, self.folder):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def measure(million_parameters: int, rounds: int, memory: Any) -> dict[str, Any]:
    """Gives seconds and memory of each contender; in a process of its own."""
    torch.set_num_threads(1)
    model, data = Wide(million_parameters * 10**6), TensorDataset(torch.randn(4, 100), torch.zeros(4))
    with TemporaryDirectory(prefix="saves-") as folder:
        turns = Turns(Path(folder), memory)
        arguments = TrainingArguments(
            folder,
            max_steps=len(Turns.ORDER) * (rounds + 1) + 1,
            per_device_train_batch_size=4,
            use_cpu=True,
            max_grad_norm=0.0,
            save_strategy="no",
            save_total_limit=1,
            block_plugins=["console", "logging"],
        )
        Trainer(model, arguments, train_dataset=data, data_collator=_columns, plugins=[turns]).train()
    return {
        "megabytes": 3 * 4 * million_parameters,
        "seconds": {name: values[1:] for name, values in turns.seconds.items()},
        "first_seconds": {name: values[0] for name, values in turns.seconds.items()},
        "rise_mb": turns.rise_mb,
    }


def _columns(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack([x for x, _ in samples]), "labels": torch.stack([label for _, label in samples])}
