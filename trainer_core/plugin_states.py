"""What plugins remember, in a checkpoint and back: each state under its plugin's name, with the version of its form.

A plugin whose state takes another form raises its `state_version` (1 where it has none) and offers
`migrate_state_dict(state, version)`, which gives a state of an older version in the form of today. State of a plugin
that is not there goes from checkpoint to checkpoint as it is, until the plugin is back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from trainer_core.errors import CheckpointError, PluginError
from trainer_core.settings.discovery import GROUP

if TYPE_CHECKING:
    from trainer_core.bus import Bus
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.plugin_states")


class PluginStates:
    """The states of the plugins of one run.

    Attributes:
        kept: states of plugins that are not there, by name.
        kept_versions: theirs.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.kept_versions: dict[str, int] = {}

    def state_dict(self, bus: Bus) -> dict[str, Any]:
        """Gives the state of every plugin, and the versions of those that are not 1."""
        plugins = _with_state(bus)
        versions = {name: state_version(name, plugin) for name, plugin in plugins.items()} | self.kept_versions
        return {
            "plugins": {name: plugin.state_dict() for name, plugin in plugins.items()} | self.kept,
            "plugin_versions": {name: version for name, version in versions.items() if version != 1},
        }

    def load_state_dict(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        """Gives each plugin its state, after all of them were found to fit; what is missing on either side is said.

        Raises:
            CheckpointError: states are of versions that their plugins do not read; it names all of them.
        """
        plugins, saved = _with_state(trainer.bus), state["plugins"]
        versions = _versions(state.get("plugin_versions", {}), saved)
        here = {name: plugin for name, plugin in plugins.items() if name in saved}
        problems = [told for name, plugin in here.items() if (told := _misfit(name, plugin, versions[name]))]
        if problems:
            raise CheckpointError("\n".join(problems))
        for name, plugin in here.items():
            _load(name, plugin, saved[name], versions[name])
        self.kept = {name: kept for name, kept in saved.items() if name not in plugins}
        self.kept_versions = {name: versions[name] for name in self.kept}
        _say(trainer, list(self.kept), [name for name in plugins if name not in saved])


def state_version(name: str, plugin: object) -> int:
    """Gives the version of the state that a plugin saves.

    Raises:
        PluginError: it is no whole number of at least 1.
    """
    version = getattr(plugin, "state_version", 1)
    if type(version) is not int or version < 1:
        raise PluginError(
            f"plugin {name!r}: state_version must be a whole number of at least 1, got {version!r}. "
            f"Begin with 1, and add 1 whenever the state takes another form."
        )
    return version


def _versions(told: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, int]:
    """Gives the version of each saved state."""
    versions = {name: told.get(name, 1) for name in saved}
    for name, version in versions.items():
        if type(version) is not int or version < 1:
            what = f"plugin {name!r}: its state in the checkpoint has no version, got {version!r}"
            raise CheckpointError(f"{what}. Use another checkpoint.")
    return versions


def _with_state(bus: Bus) -> dict[str, Any]:
    return {
        name: member.plugin
        for name, member in bus.members.items()
        if hasattr(member.plugin, "state_dict") and hasattr(member.plugin, "load_state_dict")
    }


def _misfit(name: str, plugin: object, saved: int) -> str:
    """Says why a plugin cannot read a state of version `saved`; empty when it can."""
    own = state_version(name, plugin)
    what = f"plugin {name!r}: the checkpoint holds its state in version {saved}, and it reads version {own}"
    without = "resume without the plugin, whose state is kept for when it returns"
    if saved > own:
        return f"{what}. Upgrade {_origin(name, plugin)}, or {without}."
    if saved < own and not hasattr(plugin, "migrate_state_dict"):
        return f"{what} and migrates none. Install the release of {_origin(name, plugin)} that saved it, or {without}."
    return ""


def _load(name: str, plugin: Any, state: Any, version: int) -> None:
    doing = "migrate_state_dict"
    try:
        if version < state_version(name, plugin):
            state = plugin.migrate_state_dict(state, version)
        doing = "load_state_dict"
        plugin.load_state_dict(state)
    except Exception as error:
        error.add_note(f"raised in {doing} of plugin {name!r}")
        raise


def _origin(name: str, plugin: object) -> str:
    """Gives the distribution that brings a plugin, or the module of one that none brings."""
    kind = type(getattr(plugin, "callback", plugin))
    for point in entry_points(group=GROUP, name=name):
        if point.dist is not None and point.attr == kind.__qualname__:
            return f"{point.dist.name} (here is {point.dist.version})"
    return f"{kind.__module__}.{kind.__qualname__}"


def _say(trainer: Trainer, kept: list[str], fresh: list[str]) -> None:
    if not trainer.ranks.is_main or not (kept or fresh):
        return
    for name in kept:
        logger.warning("plugin %r: is not there; its state is kept in each checkpoint for when it returns.", name)
    for name in fresh:
        logger.warning("plugin %r: the checkpoint holds no state of it; it begins anew.", name)
    trainer.record("plugin_states", kept=kept, fresh=fresh)
