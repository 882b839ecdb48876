"""`TrainingArguments`, the front door to all settings: the core's options and the sections of plugins.

Flat names (`learning_rate`, `logging_steps`) and nested ones (`optimizer={...}`, `logging={...}`) are two spellings
of one thing. Sources, lowest first: defaults, configuration files, environment, command line, keywords.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn, Self

from pydantic import ConfigDict, PrivateAttr

from trainer_core.errors import SettingsError, did_you_mean
from trainer_core.settings import names
from trainer_core.settings.accepted import values_of
from trainer_core.settings.contradictions import core_contradictions, derived_values
from trainer_core.settings.discovery import installed_names, installed_plugins
from trainer_core.settings.launched import Launched
from trainer_core.settings.merging import Layer, blocked_plugins, keyword_layer, merge
from trainer_core.settings.options import (
    CoreOptions,
    DataOptions,
    DistributedOptions,
    EvaluationOptions,
    OptimizerOptions,
    PrecisionOptions,
)
from trainer_core.settings.provenance import DERIVED, sources_of
from trainer_core.settings.secrecy import mask_mistaken, mask_secrets
from trainer_core.settings.section import DEFAULT, Given, Section, problem
from trainer_core.settings.sources import environment_layer, file_layers
from trainer_core.settings.validation import fill
from trainer_core.settings.vocabulary import Place, Vocabulary, build_vocabulary

FilePath = str | os.PathLike[str]


# The last base's fields come first, in `--help`, in `repr` and in files.
class TrainingArguments(
    Launched, DistributedOptions, PrecisionOptions, EvaluationOptions, DataOptions, OptimizerOptions, CoreOptions
):
    """All settings of a run, frozen and valid.

    Options of the core are attributes; so are flat names of plugins (`args.logging_steps`; None when the plugin is
    off), the sections of plugins by name (`args.logging`), and the original's other spellings.

    Args:
        output_dir: folder for everything that the run writes; None for "trainer_output".
        options: any option, flat or nested. The environment's TRAINER_CORE_<NAME> variables lie below.

    Raises:
        SettingsError: anything is wrong; it holds every mistake at once.
        PluginError: an installed plugin is broken.
    """

    model_config = ConfigDict(defer_build=False)

    _sections: dict[str, Section] = PrivateAttr(default_factory=dict)
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, output_dir: FilePath | None = None, **options: object) -> None:
        if output_dir is not None:
            options = {"output_dir": output_dir, **options}
        self._build([environment_layer(), keyword_layer(options)])

    @classmethod
    def from_file(cls, *paths: FilePath, **options: object) -> Self:
        """Gives the settings in YAML, TOML or JSON files; a later file wins, then the environment, then keywords.

        Raises:
            SettingsError: anything is wrong; it holds every mistake at once.
        """
        return cls.from_layers([*file_layers(paths), environment_layer(), keyword_layer(options)])

    @classmethod
    def from_command_line(
        cls, argv: Sequence[str] | None = None, *, file: FilePath | Sequence[FilePath] | None = None, **defaults: object
    ) -> Self:
        """Gives the settings of a command line, over the environment, files and the script's own defaults.

        Args:
            argv: arguments without the program's name; None for the process's own.
            file: settings files, the last wins; files named with `--config` lie over them.
            defaults: options that everything else overrides.

        Raises:
            SettingsError: anything is wrong; it holds every mistake at once.
            SystemExit: `--help` was asked for and printed.
        """
        files = [] if file is None else [file] if isinstance(file, (str, os.PathLike)) else list(file)
        return cls.from_line(argv, [keyword_layer(defaults), *file_layers(files)])

    @classmethod
    def from_line(cls, argv: Sequence[str] | None, below: Sequence[Layer], remaining: list[str] | None = None) -> Self:
        """Gives the settings of a command line over some layers; `remaining` gets the words that no option takes."""
        from trainer_core.settings.command_line import read_command_line

        words = cls._vocabulary(blocked_plugins(below, cls))
        named, line = read_command_line(words, argv, remaining)
        return cls.from_layers([*below, *file_layers(named), environment_layer(), line])

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Gives one JSON schema of a settings file: the core, its groups, and every installed plugin."""
        from trainer_core.settings.schema import json_schema

        return json_schema(cls._vocabulary([]))

    def replace(self, **changes: object) -> Self:
        """Gives a copy with other values; what followed from a changed option follows anew.

        Raises:
            SettingsError: the new values are wrong.
        """
        return self.from_layers([Layer(list(self.explicit())), keyword_layer(changes)])

    @classmethod
    def knows(cls, name: str) -> bool:
        """Tells whether an option, a group or a section can be given under this name, be it refused."""
        words = cls._vocabulary([])
        return name.partition(".")[0] in {*words.names(), *words.methods, *names.REFUSED} or hasattr(cls, name)

    def section(self, name: str) -> Section | None:
        """Gives the settings of a plugin, None when it is off or not installed."""
        return self._sections.get(name)

    @property
    def sections(self) -> Mapping[str, Section]:
        """The settings of all plugins that are on, by name."""
        return MappingProxyType(self._sections)

    @property
    def sources(self) -> Mapping[str, str]:
        """Who gave each value: option or `section.field` (and its flat name) -> "default", a file, "keyword", ..."""
        return MappingProxyType(self._sources)

    def to_dict(self) -> dict[str, Any]:
        """Gives all values as JSON has them; `TrainingArguments(**args.to_dict())` equals `args`.

        Secrets come out masked, by the names of their options.
        """
        words = self._words()
        off = {name: None for name, kind in words.sections.items() if kind.on_by_default and name not in self._sections}
        on = {name: section.model_dump(mode="json") for name, section in self._sections.items()}
        values: dict[str, Any] = mask_secrets({**self.model_dump(mode="json"), **on, **off})
        return values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in type(self).model_fields:
            return super().__getattr__(name)  # type: ignore[misc]  # BaseModel hides it from type checkers
        words = self._words()
        if name in words.sections:
            return self._sections.get(name)
        if name in names.ALIASES:
            alias = names.ALIASES[name]
            value = getattr(self, alias.field)
            return value if alias.read is None else alias.read(value)
        flat = words.aliases.get(name, name)
        if flat in words.flat or flat in words.switches:
            return self._flat(words, flat)
        if (method := words.methods.get(name)) is not None:
            return self._method(name, method)
        if accepted := values_of(name):
            return accepted[0]
        if name.startswith("set_"):
            raise AttributeError(f"{name}: settings are frozen. Use args.replace(option=value).", name=name, obj=self)
        what, remedy = words.unknown(name)
        raise AttributeError(f"{name}: {what}. {remedy}", name=name, obj=self)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            given = repr(mask_mistaken(value, name))
            raise AttributeError(f"{name}: settings are frozen, got {given}. Use args.replace({name}={given}).")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name}: settings are frozen. Use args.replace({name}=...).")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__ and self._sections == other._sections

    __hash__ = None  # type: ignore[assignment]  # lists and mappings are among the values

    def __repr__(self) -> str:
        values = (f"{name}={mask_secrets(value, name)!r}" for name, value in self._unusual())
        return f"{type(self).__name__}({', '.join(values)})"

    __str__ = __repr__

    @classmethod
    def _vocabulary(cls, blocked: Iterable[str]) -> Vocabulary:
        return build_vocabulary(cls, tuple(installed_plugins(tuple(blocked)).items()))

    def _words(self) -> Vocabulary:
        return self._vocabulary(self.block_plugins)

    @classmethod
    def from_layers(cls, layers: Sequence[Layer]) -> Self:
        """Gives the settings of `layers`, of which a later one wins."""
        args = cls.__new__(cls)
        args._build(layers)
        return args

    def _build(self, layers: Sequence[Layer]) -> None:
        """Merges, validates and completes; every mistake is collected before any is raised."""
        blocked = blocked_plugins(layers, type(self))
        words = self._vocabulary(blocked)
        merged = merge(words, layers)
        problems = [*merged.problems, *_misspelt_blocks(blocked), *fill(self, merged.core, "")]
        sections: dict[str, Section] = {}
        for name, given in merged.sections.items():
            section = sections[name] = words.sections[name].__new__(words.sections[name])
            problems += fill(section, given, name)
        if problems:
            raise SettingsError(problems)
        self._sections = sections
        self._sources = sources_of(words, merged, sections)
        self._complete()
        problems = [*core_contradictions(self), *(p for s in sections.values() for p in s.contradictions(self))]
        if problems:
            raise SettingsError(problems)

    def _complete(self) -> None:
        for name, (value, origin) in derived_values(self).items():
            self.__dict__[name] = value
            self._sources[name] = DERIVED + origin

    def _method(self, name: str, place: Place) -> partial[Any]:
        if place.section not in self._sections:
            raise AttributeError(
                f"{name}: belongs to {place.section!r}, which is off. Turn it on.", name=name, obj=self
            )
        return partial(getattr(self._sections[place.section], place.field), self)

    def _flat(self, words: Vocabulary, flat: str) -> object:
        place = words.flat.get(flat)
        name = words.switches[flat] if place is None else place.section
        section = self._sections.get(name)
        if place is None:
            return section is not None
        if section is not None:
            return getattr(section, place.field)
        is_switch = flat in words.switches
        return False if is_switch and words.field(place).annotation is bool else None

    def explicit(self) -> Iterator[Given]:
        """Gives what was given, with its sources, to build the same settings from."""
        sections = self._words().sections
        for name, source in self._sources.items():
            if source == DEFAULT or source.startswith(DERIVED):
                continue
            head, _, field = name.partition(".")
            if name in type(self).model_fields:
                yield Given(getattr(self, name), source, name)
            elif name in sections:
                yield Given(name in self._sections, source, name)
            elif field and head in self._sections:
                yield Given(getattr(self._sections[head], field), source, name)

    def _unusual(self) -> Iterator[tuple[str, object]]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            derived = self._sources[name].startswith(DERIVED)
            if value != field.get_default(call_default_factory=True) and not derived:
                yield name, value
        for name, kind in self._words().sections.items():
            section = self._sections.get(name)
            if section is None and kind.on_by_default:
                yield name, None
            elif section is not None and (values := _unusual_fields(section) or not kind.on_by_default):
                yield name, values


def _unusual_fields(section: Section) -> dict[str, object]:
    fields = type(section).model_fields.items()
    return {
        name: value
        for name, field in fields
        if (value := getattr(section, name)) != field.get_default(call_default_factory=True)
    }


def _misspelt_blocks(blocked: Sequence[str]) -> Iterator[str]:
    """Finds blocked names that no plugin bears but one nearly does; others may be installed elsewhere."""
    for name in blocked:
        if name not in installed_names() and get_close_matches(name, installed_names(), n=1):
            hint = did_you_mean(name, installed_names()).strip()
            yield problem("block_plugins", "no plugin has this name", Given(name), hint)
