"""How much disk checkpoints will take, estimated before the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainer_core import Trainer

OPTIMIZER_COPIES: Final[Mapping[str, float]] = {
    "adamw": 2.0,
    "adam": 2.0,
    "nadam": 2.0,
    "radam": 2.0,
    "adamax": 2.0,
    "adadelta": 2.0,
    "rmsprop": 1.0,
    "adagrad": 1.0,
    "rprop": 2.0,
    "lion": 1.0,
    "sgd": 0.0,
    "adafactor": 0.02,  # factored: a row and a column of each matrix
}
"""Copies of the trained parameters in an optimizer's state; momentum in SGD and RMSprop adds one."""
_UNKNOWN: Final = 2.0
OVERHEAD_BYTES: Final = 64 * 1024
"""Manifest, counters and random states."""


def checkpoint_bytes(trainer: Trainer, *, only_model: bool) -> int:
    """Gives what one checkpoint takes: parameters, buffers, and the optimizer's state by its name."""
    model = trainer.model
    weights = sum(parameter.nbytes for parameter in model.parameters())
    weights += sum(buffer.nbytes for buffer in model.buffers())
    if only_model:
        return weights + OVERHEAD_BYTES
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return weights + int(trained * copies(trainer)) + OVERHEAD_BYTES


def copies(trainer: Trainer) -> float:
    """Gives how many copies of the trained parameters the optimizer's state is like."""
    name = optimizer_name(trainer)
    kept = next((number for kind, number in OPTIMIZER_COPIES.items() if name.startswith(kind)), _UNKNOWN)
    optimizer = trainer.users_optimizers[0]
    if optimizer is not None:
        has_momentum = any(group.get("momentum") for group in optimizer.param_groups)
    else:
        has_momentum = "momentum" in (trainer.args.optim_args or "")
    return kept + (1.0 if has_momentum and name.startswith(("sgd", "rmsprop")) else 0.0)


def optimizer_name(trainer: Trainer) -> str:
    """Gives the name of the user's optimizer, or of that in the settings."""
    optimizer = trainer.users_optimizers[0]
    return str(trainer.args.optim if optimizer is None else type(optimizer).__name__).lower()


def kept_at_most(num_saves: int, limit: int | None, *, has_best: bool) -> int:
    """Gives how many checkpoints are there at most: the kept ones, and the one that is written before one goes."""
    if limit is None:
        return num_saves
    return min(num_saves, max(limit, 2 if has_best else 1) + 1)
