"""What a manifest says of the run that wrote it: versions, plugins, settings."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

import torch

import trainer_core

if TYPE_CHECKING:
    from trainer_core import Trainer

_SECRETS: Final = ("token", "password", "secret", "api_key")
_MASK: Final = "***"


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
    masked: dict[str, Any] = _without_secrets(trainer.args.to_dict())
    return masked


def _class_of(plugin: object) -> str:
    kind = type(getattr(plugin, "callback", plugin))
    return f"{kind.__module__}.{kind.__qualname__}"


@lru_cache(maxsize=1)
def _installed_versions() -> dict[str, str]:
    points = entry_points(group="trainer_core")
    return {point.name: f" {point.dist.version}" for point in points if point.dist is not None}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(name): _MASK if item is not None and _is_secret(str(name)) else _without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _is_secret(name: str) -> bool:
    return name.lower().endswith(_SECRETS)
