"""Reads options from a command line; `--help` shows them by group and by plugin.

pydantic-settings names the flags and writes their help; argparse splits the line. What a flag's text means is
read as for every other source, so that a wrong value is told together with all other mistakes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest
from types import UnionType
from typing import Annotated, Any, Final, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource

from trainer_core.errors import SettingsError
from trainer_core.settings import names
from trainer_core.settings.conversion import takes_bool, takes_list
from trainer_core.settings.merging import Layer
from trainer_core.settings.options import Options
from trainer_core.settings.secrecy import mask_text
from trainer_core.settings.section import Given, shown
from trainer_core.settings.vocabulary import CORE, Place, Vocabulary

SOURCE: Final = "command line"
_NO_VALUE: Final = "\0"
"""Stands for a flag without a value, for argparse would end the program at it."""
_FILES: Final = "\0files"
_NEGATIVE: Final = re.compile(r"-(\d|\.\d|inf|nan)")


@dataclass(frozen=True)
class _Flag:
    """An option as the command line names it."""

    name: str
    place: Place
    field: FieldInfo


def read_command_line(
    words: Vocabulary, argv: Sequence[str] | None, remaining: list[str] | None = None
) -> tuple[list[str], Layer]:
    """Gives the files named with `--config` and the layer of all other options.

    Args:
        words: what can be given.
        argv: arguments without the program's name; None for the process's own.
        remaining: gets the words that no option takes; None to tell them as mistakes.

    Raises:
        SettingsError: the line cannot be split into options.
        SystemExit: `--help` was printed.
    """
    found, rest = _build_parser(words).parse_known_args(sys.argv[1:] if argv is None else list(argv))
    if remaining is not None:
        remaining += rest
        rest = []
    files = [file for file in vars(found).pop(_FILES, []) if file != _NO_VALUE]
    values = {name: _one_or_many(value) for name, value in vars(found).items()}
    given = [*values.items(), *_unknown(rest)]
    problems = [
        f"{name}: needs a value on the command line. Write --{name} VALUE."
        for name, value in given
        if value == _NO_VALUE
    ]
    loose = [shown("", word) for word in _stray(rest)]
    stray = [f"command line: belongs to no option, got {word}. Write --option VALUE." for word in loose]
    entries = [Given(value, SOURCE, name) for name, value in given if value != _NO_VALUE]
    return files, Layer(entries, "text", [*problems, *stray])


def _one_or_many(value: object) -> object:
    """Gives a single value as text, which may say None or hold a list in JSON."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError([f"command line: {mask_text(message, pairs=True)}. See --help."])


def _build_parser(words: Vocabulary) -> argparse.ArgumentParser:
    parser = _Parser(
        allow_abbrev=False,
        formatter_class=_Formatter,
        usage="%(prog)s [--option VALUE ...]",
        epilog="Hyphens may stand for underscores (--learning-rate); --no-OPTION says false; null says None.",
    )
    parser._negative_number_matcher = _NEGATIVE  # argparse takes -1e-3 for a flag, and has no other way to say so
    flags = {flag.name: flag for flag in _flags(words)}
    aliases = {**{alias: entry.field for alias, entry in names.ALIASES.items()}, **words.aliases}
    others = [*words.sections, *words.switches, *aliases, *(str(flag.place) for flag in flags.values())]
    taken = {f"--{form}" for name in [*flags, *others] for form in (name, name.replace("_", "-"))}
    hidden = _Hidden(parser.add_argument_group(), taken)
    if "config" not in flags:  # an option of a script's own may have the name
        parser.add_argument(
            "--config", dest=_FILES, metavar="FILE", action="append", nargs="?", const=_NO_VALUE, default=[],
            help="Settings file (YAML, TOML, JSON); may be given again, the last wins.",
        )  # fmt: skip
    groups = _help_groups(parser, hidden, words)

    def add_argument(target: argparse.ArgumentParser, *_: str, **options: Any) -> None:
        flag = flags[options["dest"]]
        group = flag.place.section or words.group_of(flag.place.field)
        _add_option(groups[group], hidden, flag, options)

    # The arguments of the source are added as it is built; nothing is parsed by it.
    CliSettingsSource(_settings_model(flags.values()), root_parser=parser, add_argument_method=add_argument)
    for alias, target in aliases.items():
        _add_alias(hidden, words, alias, target)
    return parser


class _Hidden:
    """The flags that `--help` does not show; one that says false gives way to an option of that name."""

    def __init__(self, group: Any, taken: set[str]) -> None:
        self.group = group
        self.taken = taken

    def add(self, *flags: str, **options: Any) -> None:
        """Adds the forms that are free."""
        free = [flag for flag in dict.fromkeys(flags) if flag not in self.taken]
        self.taken.update(free)
        if free:
            self.group.add_argument(*free, **options, help=argparse.SUPPRESS)


class _Formatter(argparse.HelpFormatter):
    """Shows a value without the brackets of an optional one: only the parser must take a flag without it."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        metavar = action.metavar if isinstance(action.metavar, str) else default_metavar
        return f"{metavar} ..." if action.nargs == "*" else metavar


def _flags(words: Vocabulary) -> Iterator[_Flag]:
    for section in (CORE, *words.sections):
        for name, field in words.model(section).model_fields.items():
            place = Place(section, name)
            yield _Flag(words.flat_name(place) or str(place), place, field)


def _settings_model(flags: Iterable[_Flag]) -> type[BaseSettings]:
    """Gives a model with a field for each flag; only pydantic-settings reads it, for names, types and help."""
    fields: dict[str, Any] = {
        f"option_{index}": (
            str if _holds_model(flag.field.annotation) else _shown_type(flag.field.annotation),
            Field(
                default=_shown_default(flag.field),
                description=flag.field.description,
                validation_alias=flag.name,
            ),
        )
        for index, flag in enumerate(flags)
    }
    return create_model("CommandLine", __base__=BaseSettings, **fields)


def _shown_type(annotation: Any) -> Any:
    """Gives a type with the values of enums, by which members are given; help would show the members' names."""
    if get_origin(annotation) is Annotated:
        return _shown_type(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return Literal[tuple(member.value for member in annotation)]
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_shown_type(part) for part in get_args(annotation))]  # noqa: UP007  # of a tuple
    return annotation


def _shown_default(field: FieldInfo) -> Any:
    default = ... if field.is_required() else field.get_default(call_default_factory=True)
    return default.value if isinstance(default, Enum) else default


def _holds_model(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_holds_model(inner) for inner in getattr(annotation, "__args__", ()))


def _help_groups(parser: argparse.ArgumentParser, hidden: _Hidden, words: Vocabulary) -> dict[str, Any]:
    kinds = [kind for kind in words.core.__mro__ if issubclass(kind, Options)]
    summaries = {vars(kind).get("group", kind.__name__): _first_line(kind) for kind in kinds}
    groups = {name: parser.add_argument_group(name, summaries.get(name)) for name in words.groups}
    for name, section in words.sections.items():
        state = "on by default" if section.on_by_default else "off by default"
        groups[name] = parser.add_argument_group(f"plugin {name}", f"{_first_line(section)} ({state})")
        about = f"Turns the plugin on; --no-{name} turns it off."
        groups[name].add_argument(f"--{name}", **_bool_flag(name), help=about)
        _add_others(hidden, name, bool)
    for flat, name in words.switches.items():
        if flat not in words.flat and flat not in words.sections:
            groups[name].add_argument(f"--{flat}", **_bool_flag(flat), help="Turns the plugin on.")
            _add_others(hidden, flat, bool)
    return groups


def _first_line(kind: type[BaseModel]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0].replace("%", "%%")


def _bool_flag(dest: str) -> dict[str, Any]:
    return {"dest": dest, "nargs": "?", "const": "true", "default": argparse.SUPPRESS, "metavar": "true|false"}


def _shape(name: str, annotation: Any) -> dict[str, Any]:
    """Gives how many values a flag takes; none is never argparse's business to complain about."""
    if takes_bool(annotation):
        return _bool_flag(name)
    if takes_list(annotation):
        return {"dest": name, "nargs": "*", "default": argparse.SUPPRESS}
    return {"dest": name, "nargs": "?", "const": _NO_VALUE, "default": argparse.SUPPRESS}


def _add_option(group: Any, hidden: _Hidden, flag: _Flag, options: dict[str, Any]) -> None:
    annotation = flag.field.annotation
    shape = _shape(flag.name, annotation)
    shown = options["metavar"]
    metavar = "VALUE" if takes_list(annotation) else "JSON" if "dict[" in shown.lower() else shown
    group.add_argument(f"--{flag.name}", **{"metavar": metavar, **shape}, help=options["help"])
    _add_others(hidden, flag.name, annotation)
    if (dotted := str(flag.place)) != flag.name:  # the flat name is shown, the nested one works as well
        hidden.group.add_argument(f"--{dotted}", **_shape(dotted, annotation), help=argparse.SUPPRESS)
        _add_others(hidden, dotted, annotation)


def _add_others(hidden: _Hidden, name: str, annotation: Any) -> None:
    """Adds a flag's form with hyphens and, of a bool, the forms that say false."""
    hyphens = name.replace("_", "-")
    if hyphens != name:
        hidden.group.add_argument(f"--{hyphens}", **_shape(name, annotation), help=argparse.SUPPRESS)
    if takes_bool(annotation):
        forms = (f"--no-{hyphens}", f"--no_{name}", f"--no-{name}")
        hidden.add(*forms, dest=name, action="store_const", const="false", default=argparse.SUPPRESS)


def _add_alias(hidden: _Hidden, words: Vocabulary, alias: str, target: str) -> None:
    entry = names.ALIASES.get(alias)
    place = Place(CORE, target) if entry is not None else words.flat.get(target)
    is_flag = place is None or (entry is not None and entry.write is not None)
    annotation = bool if is_flag or place is None else words.field(place).annotation
    hidden.group.add_argument(f"--{alias}", **_shape(alias, annotation), help=argparse.SUPPRESS)
    _add_others(hidden, alias, annotation)


def _is_flag(token: str) -> bool:
    return token.startswith("-") and token.strip("-") != "" and _NEGATIVE.match(token) is None


def _unknown(rest: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Gives flags that nothing declared, with their values, for the message that names what was meant."""
    for token, following in zip_longest(rest, rest[1:]):
        if _is_flag(token):
            name, has_value, value = token.lstrip("-").partition("=")
            if not has_value:
                value = "true" if following is None or _is_flag(following) else following
            yield name.replace("-", "_"), value


def _stray(rest: Sequence[str]) -> Iterator[str]:
    """Gives words that belong to no flag."""
    may_be_value = False
    for token in rest:
        is_flag = _is_flag(token)
        if not is_flag and not may_be_value:
            yield token
        may_be_value = is_flag and "=" not in token
