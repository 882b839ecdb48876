"""What a watched run did, and what must be the same however often it was killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch._dynamo  # an optimizer imports it when the first one is made

from trainer_core.trainer import Trainer

WITH_CLOCK: Final = "logging"
"""A plugin whose state holds the length of a file of rows, among them times."""


class Witness:
    """A plugin that notes what the run does, announces its saves, and keeps a memory that a checkpoint must bring back.

    Args:
        announce: is called with the name of each checkpoint that was announced.
    """

    name = "witness"

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.announce = announce
        self.updates: list[int] = []
        self.saves: list[int] = []
        self.evaluated: list[tuple[int, float]] = []

    def on_step_end(self, trainer: Trainer) -> None:
        """Notes an update."""
        self.updates.append(trainer.state.global_step)

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Notes an evaluation, in its memory."""
        self.evaluated.append((trainer.state.global_step, metrics["eval_loss"]))

    def on_save(self, trainer: Trainer, checkpoint: Path) -> None:
        """Notes a save, and announces it."""
        self.saves.append(trainer.state.global_step)
        self.announce(checkpoint.name)

    def state_dict(self) -> dict[str, Any]:
        """Gives its memory."""
        return {"evaluated": self.evaluated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it over."""
        self.evaluated = state["evaluated"]


def witnessed(trainer: Trainer, witness: Witness) -> dict[str, Any]:
    """Trains, with `witness` on the bus, and gives what came of it."""
    trainer.train()
    return account_of(trainer, witness)


def account_of(trainer: Trainer, witness: Witness) -> dict[str, Any]:
    """Gives what a run that is over did (`did`) and what must be equal (`end`)."""
    did = {
        "outcome": trainer.outcome,
        "resumed_from": None if trainer.resumed_from is None else trainer.resumed_from.name,
        "updates": witness.updates,
        "saves": witness.saves,
    }
    return {"did": did, "end": plain(_end(trainer))}


def _end(trainer: Trainer) -> dict[str, Any]:
    scheduler, members = trainer.lr_scheduler, trainer.bus.members
    states = {
        name: member.plugin.state_dict()
        for name, member in members.items()
        if name != WITH_CLOCK and hasattr(member.plugin, "state_dict")
    }
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": None if scheduler is None else scheduler.state_dict(),
        "history": [untimed(row) for row in trainer.state.log_history],
        "counters": trainer.state.counters(),
        "plugins": states,
        "best": None if trainer.loaded_best_from is None else trainer.loaded_best_from.name,
    }


def untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a logged row without what depends on the clock."""
    return {name: value for name, value in row.items() if not name.endswith(("_runtime", "_per_second"))}


def plain(value: Any) -> Any:
    """Gives a state with the bits of each tensor as text, so that equal is equal to the bit."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.detach().cpu().numpy().tobytes().hex()}"
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.hex() if isinstance(value, float) else value
