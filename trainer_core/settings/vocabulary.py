"""Every name that an option can be given under, for one arguments class and one set of plugins.

Built once and kept; a plugin whose names collide with others is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer_core.errors import PluginError, did_you_mean
from trainer_core.settings import names
from trainer_core.settings.discovery import blocked_by_environment, installed_names
from trainer_core.settings.options import Options
from trainer_core.settings.section import Section

CORE: Final = ""


class Place(NamedTuple):
    """Where a value lives: a field of the core (`section` is empty) or of a plugin's section."""

    section: str
    field: str

    def __str__(self) -> str:
        return f"{self.section}.{self.field}" if self.section else self.field


@dataclass(frozen=True)
class Vocabulary:
    """The names that one arguments class understands with one set of plugins."""

    core: type[BaseModel]
    sections: Mapping[str, type[Section]]
    groups: Mapping[str, frozenset[str]]
    """Group of the core -> its fields."""
    flat: Mapping[str, Place]
    """Flat name of a plugin -> the field it stands for."""
    switches: Mapping[str, str]
    """Flat name that turns a plugin on -> its section."""
    aliases: Mapping[str, str]
    """Other spelling of a plugin's flat name -> flat name."""
    warned: frozenset[str]
    """Aliases whose use is logged as a warning."""
    methods: Mapping[str, Place]
    """Method of the arguments -> the method of a section that does its work."""

    def field(self, place: Place) -> FieldInfo:
        """Gives what is known of a field."""
        return self.model(place.section).model_fields[place.field]

    def model(self, section: str) -> type[BaseModel]:
        """Gives the model of a section, or of the core."""
        return self.sections[section] if section else self.core

    def group_of(self, field: str) -> str:
        """Gives the group that a field of the core is in."""
        return next(group for group, fields in self.groups.items() if field in fields)

    def flat_name(self, place: Place) -> str | None:
        """Gives the flat name of a place, if it has one."""
        return next(
            (name for name, other in self.flat.items() if other == place), None if place.section else place.field
        )

    def names(self) -> Iterator[str]:
        """Gives every name, to suggest one from."""
        yield from self.core.model_fields
        for table in (names.ALIASES, self.flat, self.switches, self.aliases, self.sections, self.groups):
            yield from table
        yield from names.PLUGIN_OF

    def unknown(self, name: str) -> tuple[str, str]:
        """Gives what is wrong with a name that nothing here bears, and what to do."""
        if name in names.REFUSED:
            return names.REFUSED[name]
        if name in names.TRAINER_ARGUMENTS:
            return "is an argument of Trainer", f"Pass it as Trainer({names.TRAINER_ARGUMENTS[name]}=...)."
        plugin = names.PLUGIN_OF.get(name, name)
        if plugin in installed_names() and plugin not in self.sections:
            how = "TRAINER_CORE_BLOCK_PLUGINS" if plugin in blocked_by_environment() else "block_plugins"
            return f"belongs to the plugin {plugin!r}, which is blocked", f"Take it out of {how}."
        if plugin in self.sections:
            return f"is not offered by the plugin {plugin!r} as it is installed", "Leave it out, or upgrade the plugin."
        if plugin in names.OUR_PLUGINS:
            install = f"Install it: pip install {names.distribution_of(plugin)}."
            return f"belongs to the plugin {plugin!r}, which is not installed", install
        return "is not an option", did_you_mean(name, self.names()).strip() or "Look at `--help` for all options."


@lru_cache(maxsize=32)
def build_vocabulary(core: type[BaseModel], plugins: tuple[tuple[str, type], ...]) -> Vocabulary:
    """Gives the names that `core` understands with `plugins`.

    Raises:
        PluginError: a plugin's names collide with others, or name a field that its section lacks.
    """
    sections: dict[str, type[Section]] = {name: plugin.settings_type for name, plugin in plugins}  # type: ignore[attr-defined]  # checked when it was loaded
    groups = _groups(core)
    owners = dict.fromkeys([*core.model_fields, *groups, *names.ALIASES], "the core")
    for name, section in sections.items():
        if hasattr(core, name):
            raise PluginError(f"plugin {name!r}: has the name of an attribute of {core.__name__}. Rename it.")
        _claim(owners, name, name)
        switch = [section.switch] if section.switch else []
        for flat in dict.fromkeys([*section.flat, *switch, *section.aliases, *section.methods]):
            if flat != name or flat in section.flat:  # a section may have its switch's name: the two mean one thing
                _claim(owners, flat, name)
        _check_targets(name, section)
    return Vocabulary(
        core=core,
        sections=sections,
        groups=groups,
        flat={flat: Place(name, field) for name, section in sections.items() for flat, field in section.flat.items()},
        switches={section.switch: name for name, section in sections.items() if section.switch is not None},
        aliases={alias: flat for section in sections.values() for alias, flat in section.aliases.items()},
        warned=frozenset(alias for section in sections.values() for alias in section.warn_aliases),
        methods={
            method: Place(name, own) for name, section in sections.items() for method, own in section.methods.items()
        },
    )


def _groups(core: type[BaseModel]) -> dict[str, frozenset[str]]:
    """Gives each group's fields; fields that a subclass of the user adds are a group of the subclass's name."""
    found: dict[type, frozenset[str]] = {}
    for base in reversed(core.__mro__):
        if issubclass(base, Options):
            found[base] = frozenset(base.model_fields).difference(*found.values())
    return {vars(base).get("group", base.__name__): own for base, own in found.items() if own}


def _claim(owners: dict[str, str], name: str, plugin: str) -> None:
    if name in owners:
        raise PluginError(f"plugin {plugin!r}: its option {name!r} is taken by {owners[name]}. Rename or block one.")
    owners[name] = f"the plugin {plugin!r}"


def _check_targets(plugin: str, section: type[Section]) -> None:
    for method, own in section.methods.items():
        if not callable(getattr(section, own, None)):
            raise PluginError(f"plugin {plugin!r}: method {method!r} stands for none of its section, got {own!r}.")
    for flat, field in section.flat.items():
        if field not in section.model_fields:
            raise PluginError(f"plugin {plugin!r}: flat name {flat!r} stands for no field, got {field!r}. Correct it.")
    for field in section.when_changed:
        if field not in section.model_fields:
            raise PluginError(f"plugin {plugin!r}: when_changed stands for no field, got {field!r}. Correct it.")
    for alias, flat in section.aliases.items():
        if flat not in section.flat and flat != section.switch:
            raise PluginError(f"plugin {plugin!r}: alias {alias!r} stands for no flat name, got {flat!r}. Correct it.")
