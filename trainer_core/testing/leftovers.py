"""What a plugin may leave behind: marks of a model and of the process, taken before and after and compared.

A mark is a place and what stands there, such as `head: _forward_hooks[3]` and the hook's function. Places that hold
what they hold by default have no mark, so that a new logger which nobody configured makes no difference.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from trainer_core.bus import Bus
from trainer_core.loop import Loop
from trainer_core.trainer import Trainer

Marks = dict[str, object]


class Same:
    """A mark of an object itself, not of its value; keeps it alive, so that its identity is not used again."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment] # compared, never looked up

    def __repr__(self) -> str:
        name = getattr(self.value, "__qualname__", None)
        return str(name) if name is not None else f"a {type(self.value).__name__}"


class Unsaid:
    """A mark that is compared and never shown: long, or secret."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unsaid) and self.value == other.value

    __hash__ = None  # type: ignore[assignment] # compared, never looked up

    def __repr__(self) -> str:
        return "…"


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Says in words how `after` differs from `before`, place by place."""
    told = [f"leaves {place} = {after[place]!r}" for place in after if place not in before]
    told += [f"takes away {place} = {before[place]!r}" for place in before if place not in after]
    for place in before.keys() & after.keys():
        if before[place] != after[place]:
            told.append(f"changes {place} from {before[place]!r} to {after[place]!r}")
    return sorted(told)


def model_marks(model: nn.Module) -> Marks:
    """Gives what a model is made of: classes, modes, attributes, hooks, and which tensors it holds."""
    marks: Marks = {}
    for name, module in model.named_modules():
        where = name or "the model"
        marks[f"{where}: its class"] = Same(type(module))
        for attribute, value in vars(module).items():
            if isinstance(value, dict):
                marks |= {f"{where}: {attribute}[{key!r}]": Same(inner) for key, inner in value.items()}
            elif isinstance(value, bool):
                marks[f"{where}: {attribute}"] = value
            else:
                marks[f"{where}: {attribute}"] = Same(value)
    for name, parameter in model.named_parameters():
        marks[f"parameter {name}: kind"] = (parameter.dtype, str(parameter.device), parameter.requires_grad)
        for attribute in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            hooks = getattr(parameter, attribute, None) or {}
            marks |= {f"parameter {name}: {attribute}[{key!r}]": Same(hook) for key, hook in hooks.items()}
    return marks


def process_marks() -> Marks:
    """Gives what a run must leave as it was in its process."""
    marks: Marks = {place: read() for place, read in SWITCHES.items()}
    marks |= {f"environment variable {name}": Unsaid(value) for name, value in os.environ.items()}
    marks |= {f"signal {number!r}": Same(signal.getsignal(number)) for number in signal.valid_signals()}
    marks |= {f"thread {thread.name}": Same(thread) for thread in threading.enumerate()}
    marks |= {f"process {child.name}": Same(child) for child in multiprocessing.active_children()}
    for logger in _loggers():
        marks |= _logger_marks(logger)
    for home in (torch_module, torch_optimizer):
        for name, value in vars(home).items():
            if name.startswith("_global") and isinstance(value, dict):
                marks |= {f"torch's {name}[{key!r}]": Same(hook) for key, hook in value.items()}
    for kind in (Trainer, Loop, Bus):
        marks |= {f"{kind.__name__}.{name}": Same(value) for name, value in vars(kind).items() if callable(value)}
    return marks


def open_files(folder: Path) -> list[str]:
    """Gives the files under `folder` that this process holds open; none where the system does not tell."""
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        return []
    found = []
    for handle in handles.iterdir():
        try:
            path = handle.readlink()
        except OSError:  # the handle of this very listing
            continue
        if path.is_relative_to(folder.resolve()):
            found.append(path.name)
    return sorted(found)


def _loggers() -> Iterator[logging.Logger]:
    yield logging.root
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


def _logger_marks(logger: logging.Logger) -> Marks:
    where = f"logger {logger.name}"
    marks: Marks = {}
    if logger.level:
        marks[f"{where}: level"] = logging.getLevelName(logger.level)
    if not logger.propagate or logger.disabled:
        marks[f"{where}: propagate, disabled"] = (logger.propagate, logger.disabled)
    marks |= {f"{where}: handler {place}": Same(handler) for place, handler in enumerate(logger.handlers)}
    marks |= {f"{where}: filter {place}": Same(filter_) for place, filter_ in enumerate(logger.filters)}
    return marks


def _crc(value: object) -> Unsaid:
    return Unsaid(zlib.crc32(repr(value).encode()))


SWITCHES: Final[Mapping[str, Callable[[], object]]] = {
    "python's random state": lambda: _crc(random.getstate()),
    "numpy's random state": lambda: _crc([part if np.isscalar(part) else part.tolist() for part in _numpy_state()]),
    "torch's random state": lambda: Unsaid(torch.get_rng_state().numpy().tobytes()),
    "torch's gradient mode": torch.is_grad_enabled,
    "torch's default type": torch.get_default_dtype,
    "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "torch's threads": torch.get_num_threads,
    "torch's matmul precision": torch.get_float32_matmul_precision,
    "torch's anomaly detection": torch.is_anomaly_enabled,
    "cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "logging.disable": lambda: logging.root.manager.disable,
    "warnings.filters": lambda: _crc(warnings.filters),
    "the working directory": os.getcwd,
    "sys.path": lambda: Unsaid(tuple(sys.path)),
    "sys.stdout": lambda: Same(sys.stdout),
    "sys.stderr": lambda: Same(sys.stderr),
    "sys.excepthook": lambda: Same(sys.excepthook),
    "sys.displayhook": lambda: Same(sys.displayhook),
}
"""Place -> how it is read."""


def _numpy_state() -> tuple[Any, ...]:
    return tuple(np.random.get_state(legacy=True))
