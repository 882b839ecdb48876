"""The plan: everything that a run will do, computed before it does anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

LISTED_STEPS: Final = 1000
"""A longer list of steps is abridged in JSON: its first three and its last, with the count."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Something that recurs.

    Attributes:
        what: "evaluation", "save", "log", …
        by: the setting or plugin that asks for it.
        steps: the updates after which it happens; None when that is not known before the run.
        note: what else there is to say.
    """

    what: str
    by: str
    steps: Sequence[int] | None
    note: str = ""


@dataclass(slots=True)
class Plan:
    """What a run will do; plugins add to it in `on_plan`.

    Attributes:
        num_parameters, num_trainable: of the model.
        num_samples: training samples an epoch; None for data without a length.
        batch_size: samples a micro-batch a rank.
        gradient_accumulation_steps: micro-batches an update.
        world_size: ranks.
        micro_batches_per_epoch, updates_per_epoch: on each rank; None when unknown.
        num_train_epochs: epochs, possibly with a fraction.
        max_steps: updates in all.
        last_update_samples: samples in the last, possibly short, update of an epoch.
        learning_rates: (when, update, rate) at the start, after warm-up, in the middle, at the end.
        scheduled: evaluations, saves and what plugins add.
        disk_bytes: what the run will hold on disk at most, by owner.
        contradictions: why the run would be refused; empty for a run that can start.
        unknown: what cannot be said before the run, and why.
        unread: options that were given and have no effect beside others.
    """

    num_parameters: int
    num_trainable: int
    num_samples: int | None
    batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    micro_batches_per_epoch: int | None
    updates_per_epoch: int | None
    num_train_epochs: float | None
    max_steps: int
    last_update_samples: int | None = None
    learning_rates: list[tuple[str, int, float]] = field(default_factory=list)
    scheduled: list[Scheduled] = field(default_factory=list)
    disk_bytes: dict[str, int] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def global_batch_size(self) -> int:
        """Samples of a full update over all ranks."""
        return self.batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def arithmetic(self) -> str:
        """The global batch size, written out."""
        return (
            f"{self.batch_size} a micro-batch × {self.gradient_accumulation_steps} accumulated × "
            f"{self.world_size} {'rank' if self.world_size == 1 else 'ranks'} = "
            f"{self.global_batch_size} samples an update"
        )

    def schedule(self, what: str, by: str, steps: Sequence[int] | None, note: str = "") -> None:
        """Adds something that recurs."""
        self.scheduled.append(Scheduled(what, by, steps, note))

    def disk(self, owner: str, num_bytes: int) -> None:
        """Adds what `owner` will hold on disk at most."""
        self.disk_bytes[owner] = self.disk_bytes.get(owner, 0) + num_bytes

    def contradict(self, problem: str) -> None:
        """Adds a reason why the run cannot start, as *where: what is wrong. What to do* reads."""
        self.contradictions.append(problem)

    def steps_of(self, what: str) -> list[int]:
        """Gives the known updates at which `what` happens, in order, without doubles."""
        return sorted({step for entry in self.scheduled if entry.what == what for step in entry.steps or ()})

    def to_dict(self) -> dict[str, Any]:
        """Gives the plan as JSON-able values."""
        kept = {name: getattr(self, name) for name in self.__slots__ if name not in ("scheduled", "learning_rates")}
        kept["global_batch_size"] = self.global_batch_size
        kept["arithmetic"] = self.arithmetic
        kept["learning_rates"] = [
            {"when": when, "step": step, "learning_rate": rate} for when, step, rate in self.learning_rates
        ]
        kept["scheduled"] = [
            {"what": entry.what, "by": entry.by, "note": entry.note, **_steps_as_json(entry.steps)}
            for entry in self.scheduled
        ]
        return kept

    def to_json(self) -> str:
        """Gives the plan as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def rows(self) -> list[tuple[str, str]]:
        """Gives the plan as (label, text) rows, as the console shows it."""
        rows = [
            ("model", f"{self.num_parameters:,} parameters, {self.num_trainable:,} trained"),
            ("batch", self.arithmetic),
            ("data", self._data_in_words()),
            ("updates", self._updates_in_words()),
        ]
        if self.learning_rates:
            rates = ", ".join(f"{rate:.3g} {when} (step {step})" for when, step, rate in self.learning_rates)
            rows.append(("learning rate", rates))
        rows += [(entry.what, _steps_in_words(entry)) for entry in self.scheduled]
        if self.disk_bytes:
            disk = ", ".join(f"{owner} {in_bytes(size)}" for owner, size in self.disk_bytes.items())
            rows.append(("disk", f"{disk} at most"))
        rows += [("unknown", text) for text in self.unknown]
        rows += [("no effect", text) for text in self.unread]
        return rows + [("refused", text) for text in self.contradictions]

    def _data_in_words(self) -> str:
        if self.num_samples is None:
            return "length unknown; read until it ends or the run does"
        text = f"{self.num_samples:,} samples, {self.micro_batches_per_epoch:,} micro-batches an epoch on each rank"
        if self.last_update_samples not in (None, self.global_batch_size):
            text += f"; the last update of an epoch has {self.last_update_samples} samples"
        return text

    def _updates_in_words(self) -> str:
        if self.updates_per_epoch is None or self.num_train_epochs is None:
            return f"{self.max_steps:,}"
        return f"{self.max_steps:,} ({self.updates_per_epoch:,} an epoch × {self.num_train_epochs:g} epochs)"


def in_bytes(size: float) -> str:
    """Gives a number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _steps_as_json(steps: Sequence[int] | None) -> dict[str, Any]:
    if steps is None:
        return {"steps": None}
    if len(steps) <= LISTED_STEPS:
        return {"steps": list(steps)}
    return {"steps": [*steps[:3], *steps[-1:]], "abridged_count": len(steps)}


def _steps_in_words(entry: Scheduled) -> str:
    by = f"by {entry.by}" + (f", {entry.note}" if entry.note else "")
    steps = entry.steps
    if steps is None:
        return f"at moments not known before the run, {by}"
    if not steps:
        return f"never, {by}"
    if len(steps) <= 6:
        return f"after step {', '.join(map(str, steps))}, {by}"
    return f"{len(steps)} times, after step {steps[0]}, {steps[1]}, {steps[2]}, … {steps[-1]}, {by}"
