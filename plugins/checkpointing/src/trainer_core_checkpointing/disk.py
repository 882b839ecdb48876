"""How much disk checkpoints will take, estimated before the run, and what there is of disk and memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainer_core import in_bytes
from trainer_core_checkpointing import files
from trainer_core_checkpointing.failures import WriteError

if TYPE_CHECKING:
    from torch import nn

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
    weights = model_bytes(trainer.model)
    if only_model:
        return weights + OVERHEAD_BYTES
    return weights + int(_trained_bytes(trainer.model) * copies(trainer)) + OVERHEAD_BYTES


def model_bytes(model: nn.Module) -> int:
    """Gives what a model's weights take: parameters and buffers; with adapters, which are saved alone, what trains."""
    if hasattr(model, "peft_config"):
        return _trained_bytes(model)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    return parameters + sum(buffer.nbytes for buffer in model.buffers())


def check_free(output_dir: Path, needed: int) -> None:
    """Makes sure that there is space for a save.

    Raises:
        WriteError: there is not; it says how much is needed and how much is free.
    """
    free = files.calls.free_bytes(output_dir)
    if free < needed + OVERHEAD_BYTES:
        raise WriteError(
            f"needs {in_bytes(needed + OVERHEAD_BYTES)}, and {in_bytes(free)} are free in {output_dir}", is_full=True
        )


def available_memory() -> int | None:
    """Gives the bytes of host memory that this process may still take without swapping; None where nobody tells."""
    found = [_of_machine(), _of_group()]
    return min((number for number in found if number is not None), default=None)


def _trained_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not on Linux
        return None


def _of_group() -> int | None:
    """Gives what a container's limit leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # there is no such group, or it has no limit
        return None


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
