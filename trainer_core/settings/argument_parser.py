"""`ArgumentParser`: `TrainingArguments` and a script's own options on one command line, and in one file.

The script's classes, dataclasses or pydantic models, become groups of options beside those of `TrainingArguments`;
from then on everything is read, converted, merged and refused as it is for `TrainingArguments` alone. What comes out is
taken apart again into one object of each class.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import new_class
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from trainer_core.errors import SettingsError
from trainer_core.settings.arguments import FilePath, TrainingArguments
from trainer_core.settings.merging import Layer, keyword_layer
from trainer_core.settings.options import Options
from trainer_core.settings.own_fields import OwnField, fields_of
from trainer_core.settings.section import DEFAULT, Given, problems_of
from trainer_core.settings.sources import file_layers


class ArgumentParser:
    """Reads a command line, or a file, into one object of each class.

    Args:
        classes: dataclasses and pydantic models, and `TrainingArguments` or a subclass of it, in any order.

    Raises:
        SettingsError: the classes cannot be read together; it holds every mistake at once.
    """

    def __init__(self, classes: type | Iterable[type]) -> None:
        self.classes = [classes] if isinstance(classes, type) else list(classes)
        own: list[type[TrainingArguments]] = [kind for kind in self.classes if _is_ours(kind)]
        guests = [kind for kind in self.classes if not _is_ours(kind)]
        problems = [] if len(own) == 1 else [_NEEDS_ONE]
        problems += _doubled(guests)
        self._guests = {kind: fields_of(kind, problems) for kind in guests}
        problems += _collisions(own, self._guests)
        if problems:
            raise SettingsError(problems)
        groups = [_group(kind, fields) for kind, fields in self._guests.items()]
        self._settings = own[0]
        self._combined: type[TrainingArguments] = new_class(own[0].__name__, (own[0], *reversed(groups)))

    def parse(
        self,
        argv: Sequence[str] | None = None,
        *,
        file: FilePath | Sequence[FilePath] | None = None,
        **defaults: object,
    ) -> tuple[Any, ...]:
        """Gives one object of each class, from a command line over the environment, files and the script's defaults.

        Args:
            argv: arguments without the program's name; None for the process's own.
            file: settings files, the last wins; files named with `--config` lie over them.
            defaults: options that everything else overrides.

        Raises:
            SettingsError: anything is wrong; it holds every mistake at once.
            SystemExit: `--help` was asked for and printed.
        """
        return self._apart(self._combined.from_command_line(argv, file=file, **defaults))

    def parse_args_into_dataclasses(
        self,
        args: Sequence[str] | None = None,
        return_remaining_strings: bool = False,
        look_for_args_file: bool = True,
        args_filename: FilePath | None = None,
        args_file_flag: str | None = None,
    ) -> tuple[Any, ...]:
        """Gives one object of each class, as the original's method of this name.

        Args:
            args: as `argv` of `parse`.
            return_remaining_strings: give words that no option takes as a last item, instead of refusing them.
            look_for_args_file: read `<script>.args` beside the script, where there is one, before the command line.
            args_filename: read this file of arguments instead.
            args_file_flag: flag of the command line that names such a file; it may be given again.
        """
        line = list(sys.argv[1:] if args is None else args)
        named, line = _taken_out(line, args_file_flag)
        files = [Path(args_filename)] if args_filename is not None else [Path(file) for file in named]
        if not files and look_for_args_file and sys.argv[0]:
            files = [beside for beside in [Path(sys.argv[0]).with_suffix(".args")] if beside.is_file()]
        before = [word for file in files for word in _words_in(file)]
        rest: list[str] | None = [] if return_remaining_strings else None
        objects = self._apart(self._combined.from_line([*before, *line], [], rest))
        return objects if rest is None else (*objects, rest)

    def parse_dict(self, args: Mapping[str, object], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Gives one object of each class, from a mapping; unknown keys are refused unless they are allowed."""
        return self._read([keyword_layer(args, "dict")], allow_extra_keys=allow_extra_keys)

    def parse_json_file(self, json_file: FilePath, allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Gives one object of each class, from a JSON file."""
        return self._read(file_layers([json_file], ".json"), allow_extra_keys=allow_extra_keys)

    def parse_yaml_file(self, yaml_file: FilePath, allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Gives one object of each class, from a YAML file."""
        return self._read(file_layers([yaml_file], ".yaml"), allow_extra_keys=allow_extra_keys)

    def _read(self, layers: list[Layer], *, allow_extra_keys: bool) -> tuple[Any, ...]:
        if allow_extra_keys:
            layers = [dataclasses.replace(layer, entries=self._known(layer.entries)) for layer in layers]
        return self._apart(self._combined.from_layers(layers))

    def _known(self, entries: Sequence[Given]) -> list[Given]:
        return [entry for entry in entries if self._combined.knows(entry.spelled)]

    def _apart(self, combined: TrainingArguments) -> tuple[Any, ...]:
        """Takes what was read together apart; what a class itself finds wrong is told like all other mistakes."""
        problems: list[str] = []
        names = {name for fields in self._guests.values() for name in fields}
        given = {
            name: Given(getattr(combined, name), source, name)
            for name, source in combined.sources.items()
            if name in names and source != DEFAULT  # a class knows its own defaults best
        }
        made = {
            kind: _made(kind, {name: given[name] for name in fields if name in given}, problems)
            for kind, fields in self._guests.items()
        }
        if problems:
            raise SettingsError(problems)
        rest = [entry for entry in combined.explicit() if entry.spelled not in names]
        arguments = self._settings.from_layers([Layer(rest)])
        return tuple(made.get(kind, arguments) for kind in self.classes)


HfArgumentParser = ArgumentParser
"""The original's name."""

_NEEDS_ONE = (
    "ArgumentParser: needs TrainingArguments, or one subclass of it, among its classes. "
    "Pass ArgumentParser((MyArguments, TrainingArguments))."
)


def _is_ours(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, TrainingArguments)


def _doubled(kinds: Sequence[type]) -> Iterator[str]:
    """Finds classes of one name, which would be one group."""
    names = [getattr(kind, "__name__", "") for kind in kinds]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"ArgumentParser: has two classes of the name {name}. Pass each once, and rename one of two."


def _collisions(own: Sequence[type[TrainingArguments]], fields: Mapping[type, Mapping[str, Any]]) -> Iterator[str]:
    """Finds names that two classes have."""
    owners = {"help": "the line itself"}
    arguments = own[0] if own else TrainingArguments
    for kind, names in fields.items():
        for name in names:
            if arguments.knows(name):
                owners.setdefault(name, arguments.__name__)
            if (other := owners.setdefault(name, kind.__name__)) != kind.__name__:
                yield f"{name}: is an option of {other} and of {kind.__name__}. Rename one of them."


def _group(kind: type, fields: Mapping[str, OwnField]) -> type[Options]:
    """Gives a class's fields as a group of options."""
    about = (vars(kind).get("__doc__") or "").strip().partition("\n")[0]
    is_generated = about.startswith(f"{kind.__name__}(")  # what dataclasses writes where there is no docstring
    definitions: dict[str, Any] = {name: (field.annotation, field.info) for name, field in fields.items()}
    try:
        group = create_model(
            kind.__name__,
            __base__=_Guest,
            __module__=kind.__module__,
            __doc__="Options of the script." if is_generated or not about else about,
            **definitions,
        )
    except (PydanticUserError, NameError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        told = f"ArgumentParser: {kind.__name__} has a field of a type without options ({reason}). Change the type."
        raise SettingsError([told]) from None
    group.group = kind.__name__
    return group


class _Guest(Options):
    """Base of the groups that are a script's own."""

    model_config = ConfigDict(use_attribute_docstrings=False, defer_build=False, arbitrary_types_allowed=False)


def _made(kind: type, given: Mapping[str, Given], problems: list[str]) -> Any:
    """Gives an object of a script's class; what its own checks say is added to `problems`."""
    try:
        return kind(**{name: one.value for name, one in given.items()})
    except ValidationError as error:
        problems += problems_of(error, getattr(kind, "__pydantic_fields__", {}), given, kind.__name__)
    except (ValueError, AssertionError) as error:  # what a class says of values that do not fit each other
        text = str(error) or "says no more than AssertionError"
        problems.append(f"{kind.__name__}: {text}{'' if text.endswith(('.', '!', '?')) else '.'}")
    return None


def _taken_out(line: list[str], flag: str | None) -> tuple[list[str], list[str]]:
    """Takes a flag and its values out of a command line."""
    found, rest, words = [], [], iter(line)
    for word in words:
        if flag is not None and word == flag:
            found.append(next(words, ""))
        elif flag is not None and word.startswith(f"{flag}="):
            found.append(word.removeprefix(f"{flag}="))
        else:
            rest.append(word)
    return found, rest


def _words_in(file: Path) -> list[str]:
    """Gives the words of a file of arguments."""
    try:
        return shlex.split(file.read_text(encoding="utf-8"), comments=True)
    except (OSError, ValueError) as error:
        raise SettingsError([f"{os.fspath(file)}: cannot be read as arguments ({error}). Correct the file."]) from error
