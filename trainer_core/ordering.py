"""Registered plugins, and the one order in which they are called."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from trainer_core.errors import PluginError


@dataclass(slots=True)
class Member:
    """A registered plugin.

    Attributes:
        name: unique on the bus.
        plugin: the object with the hooks.
        critical: an exception of it ends the run; else it is switched off after `MAX_FAILURES`.
        before, after: names of plugins that it must precede or follow.
        seconds: time spent in its hooks (step hooks estimated by sampling).
        failures: exceptions of a best-effort plugin so far.
    """

    name: str
    plugin: object
    critical: bool
    before: tuple[str, ...]
    after: tuple[str, ...]
    seconds: float = 0.0
    failures: int = 0
    is_off: bool = False


def wished(plugin: object, wish: str, name: str) -> tuple[str, ...]:
    """Gives the names in a plugin's `before` or `after`.

    Raises:
        PluginError: it is no list of names.
    """
    names = getattr(plugin, wish, ())
    if not isinstance(names, list | tuple) or not all(isinstance(other, str) for other in names):
        raise PluginError(f"plugin {name!r}: `{wish}` must be a tuple of plugins' names, got {names!r}. Give it names.")
    return tuple(names)


def ordered(members: Iterable[Member]) -> list[Member]:
    """Gives `members` in an order that honours `before` and `after`, else that of registration.

    Names of plugins that are not there are passed over.

    Raises:
        PluginError: the wishes form a circle; it names the plugins in it.
    """
    waiting = {member.name: member for member in members}
    behind: dict[str, set[str]] = {name: set(member.after) & waiting.keys() for name, member in waiting.items()}
    for name, member in waiting.items():
        for later in set(member.before) & waiting.keys():
            behind[later].add(name)
    result: list[Member] = []
    while waiting:
        free = next((name for name in waiting if not behind[name] & waiting.keys()), None)
        if free is None:
            circle = ", ".join(_circle(behind, next(iter(waiting)), waiting.keys()))
            raise PluginError(f"plugins {circle}: before/after form a circle. Take one of the wishes back.")
        result.append(waiting.pop(free))
    return result


def _circle(behind: Mapping[str, set[str]], start: str, waiting: Collection[str]) -> list[str]:
    """Gives the circle that is found by going from `start`, which waits, to one that it waits for, and so on."""
    walk = [start]
    while (step := next(name for name in waiting if name in behind[walk[-1]])) not in walk:
        walk.append(step)
    return walk[walk.index(step) :]
