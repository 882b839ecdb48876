"""What a manifest says of the run that wrote it: versions, plugins, settings."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import torch

import trainer_core
from trainer_core import mask_secrets

if TYPE_CHECKING:
    from trainer_core import Trainer


def versions() -> dict[str, str]:
    """Gives the versions that a reader may want to know."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "trainer_core": trainer_core.__version__,
    }


def plugins(trainer: Trainer) -> dict[str, str]:
    """Gives the class of each plugin on the bus, with the version of its distribution where it is installed."""
    installed = _installed_versions()
    return {name: _class_of(member.plugin) + installed.get(name, "") for name, member in trainer.bus.members.items()}


def settings(trainer: Trainer) -> dict[str, Any]:
    """Gives all settings, secrets masked."""
    masked: dict[str, Any] = mask_secrets(trainer.args.to_dict())
    return masked


def _class_of(plugin: object) -> str:
    kind = type(getattr(plugin, "callback", plugin))
    return f"{kind.__module__}.{kind.__qualname__}"


@lru_cache(maxsize=1)
def _installed_versions() -> dict[str, str]:
    points = entry_points(group="trainer_core")
    return {point.name: f" {point.dist.version}" for point in points if point.dist is not None}
