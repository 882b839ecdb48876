"""Lays sources over one another: which value each option ends with, whose it is, and which plugins are on.

A layer holds what one source gave, in any spelling. Within a layer two spellings of one option must agree; of two
layers the later wins. A section is present when

- it was given (`name={...}`, `name=True`, a section object, one of its fields), or
- the flat name that is its switch was given a value, or
- it is on by default,

and the last layer that said so or the contrary decides. What a layer sets for a section that it or a later one
turned off is a mistake when it was said together with or after the turning off, and dropped when it came before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from trainer_core.errors import did_you_mean
from trainer_core.settings import names
from trainer_core.settings.accepted import is_accepted
from trainer_core.settings.conversion import Kind, as_switch, converted, plain
from trainer_core.settings.section import Given, Section, problem, shown
from trainer_core.settings.vocabulary import CORE, Place, Vocabulary

logger = logging.getLogger("trainer_core.settings")


@dataclass(frozen=True)
class Layer:
    """What one source gave."""

    entries: Sequence[Given]
    kind: Kind = "python"
    problems: Sequence[str] = ()
    """What was wrong with the source itself."""


@dataclass(frozen=True)
class Switched:
    """A source said that a section is on or off."""

    section: str
    on: bool
    given: Given


@dataclass
class Merged:
    """What all layers come to."""

    core: dict[str, Given] = field(default_factory=dict)
    sections: dict[str, dict[str, Given]] = field(default_factory=dict)
    """Present sections, with what was given for them."""
    switched: dict[str, str] = field(default_factory=dict)
    """Section -> the source that turned it on or off."""
    problems: list[str] = field(default_factory=list)


Step = tuple[Place, Given] | Switched | str
"""What an entry says: a value, a section on or off, or a mistake."""


def keyword_layer(options: Mapping[str, object], source: str = "keyword") -> Layer:
    """Gives the layer of keyword arguments."""
    return Layer([Given(value, source, name) for name, value in options.items()])


def merge(vocabulary: Vocabulary, layers: Sequence[Layer]) -> Merged:
    """Gives what `layers`, lowest first, come to."""
    merged = Merged()
    ledgers = {name: _Ledger() for name in vocabulary.sections}
    for level, layer in enumerate(layers):
        merged.problems += layer.problems
        found: dict[Place, Given] = {}
        for entry in layer.entries:
            for step in _Reader(vocabulary, layer.kind).read(entry):
                if isinstance(step, str):
                    merged.problems.append(step)
                elif isinstance(step, Switched):
                    merged.problems += ledgers[step.section].switch(level, step)
                else:
                    merged.problems += _note(found, *step)
        for place, given in found.items():
            if place.section == CORE:
                merged.core[place.field] = given
            else:
                ledgers[place.section].values[place.field] = (level, given)
    for name, ledger in ledgers.items():
        ledger.close(name, vocabulary.sections[name], merged)
    return merged


def _note(found: dict[Place, Given], place: Place, given: Given) -> Iterator[str]:
    """Keeps a value; two spellings of one option must agree."""
    before = found.setdefault(place, given)
    if before.spelled == given.spelled:
        found[place] = given
    elif (flag := _flag_of(before) or _flag_of(given)) is not None and flag(before.value) == flag(given.value):
        found[place] = given if _flag_of(before) else before  # the choice says more than yes or no
    elif type(before.value) is not type(given.value) or before.value != given.value:
        other = f"is given as {_assignment(Given(_as_given(before), spelled=before.spelled))} as well"
        mine = Given(_as_given(given), given.source, given.spelled)
        yield problem(given.spelled, other, mine, f"They are one option: keep {before.spelled} or {given.spelled}.")


def _flag_of(given: Given) -> Callable[[object], object] | None:
    alias = names.ALIASES.get(given.spelled.rpartition(".")[2])
    return alias.read if alias is not None else None


def _as_given(given: Given) -> object:
    flag = _flag_of(given)
    return given.value if flag is None else flag(given.value)


def _assignment(given: Given) -> str:
    return f"{given.spelled}={shown(given.spelled, given.value)}"


class _Ledger:
    """What was said of one section, and by which layer."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[int, Given]] = {}
        self.last: tuple[int, Switched] | None = None

    def switch(self, level: int, step: Switched) -> Iterator[str]:
        if self.last is not None and self.last[0] == level and self.last[1].on != step.on:
            before = self.last[1].given
            what = f"contradicts {_assignment(before)}"
            yield problem(step.given.spelled, what, step.given, "Keep one of the two.")
        self.last = (level, step)

    def close(self, name: str, section: type[Section], merged: Merged) -> None:
        """Writes into `merged` whether the section is present, with which values, and what was said in vain."""
        level, last = self.last if self.last is not None else (-1, None)
        newest = max((at for at, _ in self.values.values()), default=-1)
        wanted = section.switch is None and newest > level
        present = wanted or (section.on_by_default if last is None else last.on)
        if last is not None and not wanted:
            merged.switched[name] = last.given.source
        if present:
            merged.sections[name] = {field: given for field, (_, given) in self.values.items()}
            return
        off = "it is off by default" if last is None else f"{_assignment(last.given)} turns it off"
        remedy = f"Set {section.switch or name}, or leave it out."
        for at, given in self.values.values():
            if at >= level:
                merged.problems.append(problem(given.spelled, f"belongs to {name!r}, and {off}", given, remedy))


class _Reader:
    """Reads the entries of one layer."""

    def __init__(self, vocabulary: Vocabulary, kind: Kind) -> None:
        self.words = vocabulary
        self.kind = kind

    def read(self, entry: Given) -> Iterator[Step]:
        """Gives what an entry says; its `spelled` is the option's name, or a dotted way to it."""
        name, words = entry.spelled, self.words
        head, _, rest = name.partition(".")
        if name in words.core.model_fields:
            yield self._value(Place(CORE, name), entry)
        elif name in names.ALIASES:
            yield from self._alias(names.ALIASES[name], entry)
        elif name in words.sections:
            yield from self._section(name, entry)
        elif name in words.groups:
            yield from self._group(name, entry)
        elif name in words.flat or name in words.switches or name in words.aliases:
            yield from self._flat(entry)
        elif rest and head in words.sections:
            yield from self._fields(head, {rest: entry.value}, entry)
        elif rest and head in words.groups:
            yield from self._group(head, Given({rest: entry.value}, entry.source, head))
        elif not is_accepted(name, entry.value, self.kind):
            yield problem(name, *self._told(name, entry))

    def _told(self, name: str, entry: Given) -> tuple[str, Given, str]:
        what, remedy = self.words.unknown(name)
        return what, entry, remedy

    def _value(self, place: Place, entry: Given) -> tuple[Place, Given]:
        value = converted(entry.value, self.words.field(place).annotation, self.kind)
        return place, Given(value, entry.source, entry.spelled)

    def _alias(self, alias: names.Alias, entry: Given) -> Iterator[Step]:
        if alias.write is None:
            if not (alias.ignores_none and entry.value is None):
                yield self._value(Place(CORE, alias.field), entry)
            return
        value = converted(entry.value, bool, self.kind)
        try:
            yield Place(CORE, alias.field), Given(alias.write(value), entry.source, entry.spelled)
        except ValueError as error:
            what, _, remedy = str(error).partition(". ")
            yield problem(entry.spelled, what, entry, remedy)

    def _flat(self, entry: Given) -> Iterator[Step]:
        words, name = self.words, entry.spelled
        if name in words.aliases:
            if name in words.warned:
                logger.warning("%s: is read as %s. Write %s.", name, words.aliases[name], words.aliases[name])
            name = words.aliases[name]
        place = words.flat.get(name)
        value = as_switch(entry.value, self.kind) if place is None else self._value(place, entry)[1].value
        given = Given(value, entry.source, entry.spelled)
        if name in words.switches:
            on = value is not None and value is not False and not is_accepted(name, entry.value, self.kind)
            yield Switched(words.switches[name], on, given)
            if place is None and not (value is None or isinstance(value, bool)):
                yield problem(entry.spelled, "must be true or false", entry, "Use True or False.")
            if not on:
                return
        if place is not None:
            yield place, given

    def _section(self, name: str, entry: Given) -> Iterator[Step]:
        value = as_switch(plain(entry.value), self.kind)
        given = Given(value, entry.source, entry.spelled)
        expected = self.words.sections[name]
        if value is None or isinstance(value, bool):
            yield Switched(name, bool(value), given)
        elif isinstance(value, expected):
            fields = {field: getattr(value, field) for field in value.model_fields_set}
            yield from self._fields(name, fields, given)
        elif isinstance(value, Mapping):
            yield from self._fields(name, value, given)
        else:
            what = f"must be a mapping, an instance of {expected.__name__}, True or None"
            yield problem(entry.spelled, what, entry, "None turns the plugin off.")

    def _fields(self, name: str, values: Mapping[str, object], entry: Given) -> Iterator[Step]:
        yield Switched(name, True, entry)
        known = self.words.sections[name].model_fields
        for key, value in values.items():
            place = Place(name, self._field_of(name, str(key)))
            given = Given(value, entry.source, f"{name}.{key}")
            if place.field in known:
                yield self._value(place, given)
            else:
                hint = did_you_mean(str(key), known).strip() or f"It has {', '.join(known) or 'no fields'}."
                yield problem(given.spelled, "is not an option", given, hint)

    def _field_of(self, section: str, key: str) -> str:
        """Gives the field that a key of a section means: a section takes its flat names, too."""
        place = self.words.flat.get(self.words.aliases.get(key, key))
        return place.field if place is not None and place.section == section else key

    def _group(self, group: str, entry: Given) -> Iterator[Step]:
        values = as_switch(entry.value, self.kind)
        if not isinstance(values, Mapping):
            what = "must be a mapping of options"
            yield problem(group, what, entry, f"{group} is a group: give {group}={{...}} or each option by itself.")
            return
        fields = self.words.groups[group]
        for key, value in values.items():
            name = str(key)
            given = Given(value, entry.source, name)
            target = names.ALIASES[name].field if name in names.ALIASES else name
            if target in fields or name in names.REFUSED:
                yield from (_respelled(step, f"{group}.{name}") for step in self.read(given))
            elif target in self.words.core.model_fields:
                home = self.words.group_of(target)
                yield problem(f"{group}.{name}", "is in the wrong group", given, f"Move it to {home}.")
            else:
                hint = did_you_mean(name, fields).strip() or f"Take it out of {group}."
                yield problem(f"{group}.{name}", "is not an option of this group", given, hint)


def _respelled(step: Step, name: str) -> Step:
    if isinstance(step, tuple):
        place, given = step
        return place, Given(given.value, given.source, name)
    return step


def blocked_plugins(layers: Sequence[Layer], core: type[BaseModel]) -> list[str]:
    """Gives `block_plugins`, which must be known before the plugins are; empty when it is wrong."""
    blocked: object = []
    for layer in layers:
        for entry in layer.entries:
            value = entry.value
            if entry.spelled == "core" and isinstance(value, Mapping):
                value = value.get("block_plugins", blocked)
            elif entry.spelled not in {"block_plugins", "core.block_plugins"}:
                continue
            blocked = converted(value, core.model_fields["block_plugins"].annotation, layer.kind)
    items = blocked if isinstance(blocked, (list, tuple)) else []
    return [name for name in items if isinstance(name, str)]
