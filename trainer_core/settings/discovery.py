"""Which plugins are installed: the entry points of the group `trainer_core`, loaded one by one.

A blocked plugin is not even imported. A broken one is reported by name, with the way to block it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from trainer_core.errors import PluginError
from trainer_core.settings.section import Section

GROUP: Final = "trainer_core"
BLOCK_VARIABLE: Final = "TRAINER_CORE_BLOCK_PLUGINS"
"""Environment variable with names of plugins, separated by commas, that are not imported."""


def installed_plugins(blocked: Collection[str] = ()) -> dict[str, type]:
    """Gives the plugin classes by name, in the order of their names, without those that are blocked.

    Args:
        blocked: names to skip, besides those in the environment variable TRAINER_CORE_BLOCK_PLUGINS.

    Raises:
        PluginError: an entry point cannot be loaded or is no plugin, or two have one name.
    """
    return dict(_load(frozenset(blocked) | blocked_by_environment(), tuple(sys.path)))


@dataclass(frozen=True, slots=True)
class Installed:
    """An entry point, whether or not a plugin comes of it.

    Attributes:
        name: of the plugin.
        distribution: the distribution that brings it, with its version; empty when that is not known.
        plugin: its class; None when it is blocked or broken.
        problem: why there is no class.
    """

    name: str
    distribution: str
    plugin: type | None
    problem: str = ""


def inventory(blocked: Collection[str] = ()) -> list[Installed]:
    """Gives every installed plugin by name, the blocked and the broken ones with why; raises for none of them."""
    names = frozenset(blocked) | blocked_by_environment()
    return [_look_at(point, names) for point in _entry_points(tuple(sys.path))]


def _look_at(point: EntryPoint, blocked: Collection[str]) -> Installed:
    distribution = "" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    if point.name in blocked:
        return Installed(point.name, distribution, None, "blocked")
    try:
        return Installed(point.name, distribution, _plugin_class(point))
    except PluginError as error:
        return Installed(point.name, distribution, None, f"broken: {error}")


def installed_names() -> frozenset[str]:
    """Gives the names of all installed plugins, blocked ones included; imports none."""
    return frozenset(point.name for point in _entry_points(tuple(sys.path)))


def blocked_by_environment() -> frozenset[str]:
    """Gives the names in TRAINER_CORE_BLOCK_PLUGINS."""
    return frozenset(name for part in os.environ.get(BLOCK_VARIABLE, "").split(",") if (name := part.strip()))


# The path is the key because it decides what is found; a plugin installed into a folder that is on the path
# already is seen by the next process.
@lru_cache(maxsize=16)
def _entry_points(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: point.name))


@lru_cache(maxsize=16)
def _load(blocked: frozenset[str], path: tuple[str, ...]) -> tuple[tuple[str, type], ...]:
    points: dict[str, EntryPoint] = {}
    for point in _entry_points(path):
        if point.name in blocked:
            continue
        if point.name in points:
            raise PluginError(_doubled(points[point.name], point))
        points[point.name] = point
    return tuple((name, _plugin_class(point)) for name, point in points.items())


def _plugin_class(point: EntryPoint) -> type:
    try:
        found = point.load()
    except Exception as error:
        raise PluginError(_broken(point, f"cannot be loaded ({type(error).__name__}: {error})")) from error
    if not isinstance(found, type):
        raise PluginError(_broken(point, f"is no class, got {found!r}"))
    settings_type = getattr(found, "settings_type", None)
    if not (isinstance(settings_type, type) and issubclass(settings_type, Section)):
        raise PluginError(_broken(point, f"needs a class attribute settings_type, a Section, got {settings_type!r}"))
    return found


def _origin(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _broken(point: EntryPoint, what: str) -> str:
    name = point.name
    way = f"block_plugins=[{name!r}] or the environment variable {BLOCK_VARIABLE}={name}"
    return f"plugin {name!r} ({_origin(point)}): {what}. Repair or uninstall it, or block it with {way}."


def _doubled(one: EntryPoint, other: EntryPoint) -> str:
    return f"plugin {one.name!r}: is there twice, got {_origin(one)} and {_origin(other)}. Uninstall one of them."
