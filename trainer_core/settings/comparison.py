"""Settings of a run that is resumed, compared with those that its checkpoint holds.

A checkpoint holds what `saved_settings` gives. Compared are the values as JSON has them, so that other spellings of one
option are one value; a field may say what its values come to (`Change.meaning`), so that a share of the run's updates
equals their number. What `to_dict` masks is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from trainer_core.errors import CheckpointError
from trainer_core.settings.change import Change, Kind, Side
from trainer_core.settings.discovery import installed_plugins
from trainer_core.settings.section import DEFAULT, Section, shown
from trainer_core.settings.vocabulary import CORE, Place, Vocabulary, build_vocabulary

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments

_GONE: Final = "nothing that is installed knows it"
_NEW: Final = "the run of the checkpoint had no such option"


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is another one than in the checkpoint.

    Attributes:
        name: of the option, as a user gives it.
        kind: free, said or refused.
        before: in the checkpoint; None also for what it did not have.
        now: in the run that resumes.
        source_before: who gave it then.
        source_now: who gave it now.
        note: what the change does, or why it is refused.
    """

    name: str
    kind: Kind
    before: Any
    now: Any
    source_before: str = DEFAULT
    source_now: str = DEFAULT
    note: str = ""

    @property
    def line(self) -> str:
        """What is said of it."""
        note = f"; {self.note}" if self.note else ""
        return f"{self.name}: {self._of(self.now, self.source_now)}, was {self._of(self.before, '')}{note}."

    @property
    def problem(self) -> str:
        """Why the run does not go on, and what to do."""
        before, now = self._of(self.before, self.source_before), self._of(self.now, self.source_now)
        what = f"{self.note}; the run of the checkpoint had {before}, got {now}"
        return f"{self.name}: {what}. Go back to {self._of(self.before, '')}, or start anew from its weights."

    @property
    def record(self) -> dict[str, Any]:
        """What the journal keeps of it."""
        return {"name": self.name, "before": self.before, "now": self.now, "source": self.source_now}

    def _of(self, value: object, source: str) -> str:
        given = f" (from {source})" if source and source != DEFAULT else ""
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        return shown(self.name, value) + given


def saved_settings(args: TrainingArguments) -> dict[str, Any]:
    """Gives what a checkpoint keeps of the settings: all values, secrets masked, and the sources of those given."""
    sources = {name: source for name, source in args.sources.items() if source != DEFAULT}
    return {"values": args.to_dict(), "sources": sources}


def differences(
    args: TrainingArguments, saved: Mapping[str, Any], counters: Mapping[str, Any], max_steps: int
) -> list[Difference]:
    """Gives every setting that differs from the checkpoint's, the free ones too, in the order of the settings.

    Args:
        args: of the run that resumes.
        saved: what `saved_settings` gave for the run that wrote the checkpoint.
        counters: of the checkpoint.
        max_steps: updates that the run that resumes will do.

    Raises:
        CheckpointError: `saved` is not what `saved_settings` gives.
    """
    words = build_vocabulary(type(args), tuple(installed_plugins(tuple(args.block_plugins)).items()))
    _check(saved, words)
    return list(_Comparison(words, args, saved, counters, max_steps).found())


def changes_of(model: type[BaseModel]) -> dict[str, Change]:
    """Gives the declarations of a class of settings, with those of its bases."""
    found: dict[str, Change] = {}
    for base in reversed(model.__mro__):
        found.update(vars(base).get("when_changed", {}))
    return found


def _check(saved: object, words: Vocabulary) -> None:
    parts = [saved.get("values"), saved.get("sources")] if isinstance(saved, Mapping) else [None]
    sections = [parts[0].get(name) for name in words.sections] if isinstance(parts[0], Mapping) else []
    if not all(isinstance(part, Mapping) for part in parts + [one for one in sections if one is not None]):
        raise CheckpointError("settings: those in the checkpoint are not what a save writes. Use another checkpoint.")


class _Comparison:
    """The settings of two runs."""

    def __init__(
        self,
        words: Vocabulary,
        args: TrainingArguments,
        saved: Mapping[str, Any],
        counters: Mapping[str, Any],
        max_steps: int,
    ) -> None:
        self.words, self.counters, self.max_steps = words, counters, max_steps
        self.before, self.now = dict(saved["values"]), args.to_dict()
        self.sources_before, self.sources_now = saved["sources"], args.sources

    def found(self) -> Iterator[Difference]:
        fields = self.words.core.model_fields
        before = {name: value for name, value in self.before.items() if name in fields}
        yield from self._of_fields(CORE, before, {name: self.now[name] for name in fields})
        for name in self.words.sections:
            yield from self._of_section(name, self.before.get(name), self.now.get(name))
        for name, value in self.before.items():
            if name not in fields and name not in self.words.sections and value is not None:
                yield Difference(name, "said", value, None, note=_GONE)

    def _of_section(
        self, name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None
    ) -> Iterator[Difference]:
        if before is not None and now is not None:
            yield from self._of_fields(name, before, now)
        elif (before is None) is not (now is None):
            section = self.words.sections[name]
            kind: Kind = "free" if is_free(section) else "said"
            note = "the plugin is off now" if now is None else "the plugin was off"
            yield self._difference(Place(name, ""), kind, before, now, note)

    def _of_fields(self, section: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
        model = self.words.model(section)
        declared = changes_of(model)
        sides = (
            Side({**_defaults(model), **before}, int(self.counters["max_steps"]), self.counters),
            Side(now, self.max_steps, self.counters),
        )
        for field in now:
            place = Place(section, field)
            change = declared.get(field, Change.said())
            if field not in before:
                if change.kind != "free" and self.sources_now.get(str(place), DEFAULT) != DEFAULT:
                    yield self._difference(place, "said", None, now[field], _NEW)
            elif not _is_same(before[field], now[field], change, sides):
                kind, note = change.kind_for(*sides), change.told(*sides)
                yield self._difference(place, kind, before[field], now[field], note)
        for field in [field for field in before if field not in now]:
            yield Difference(str(Place(section, field)), "said", before[field], None, note=_GONE)

    def _difference(self, place: Place, kind: Kind, before: object, now: object, note: str) -> Difference:
        name = self.words.flat_name(place) if place.field else place.section
        where = str(place) if place.field else place.section
        sources = self.sources_before.get(where, DEFAULT), self.sources_now.get(where, DEFAULT)
        return Difference(name or where, kind, before, now, *sources, note)


def is_free(section: type[Section]) -> bool:
    """Whether nothing that a section says has an effect on what is learnt."""
    declared = changes_of(section)
    return all(declared.get(field, Change.said()).kind == "free" for field in section.model_fields)


def _is_same(before: object, now: object, change: Change, sides: tuple[Side, Side]) -> bool:
    if before == now and isinstance(before, bool) is isinstance(now, bool):
        return True
    if change.meaning is None:
        return False
    try:
        return change.meaning(sides[0]) == change.meaning(sides[1])
    except (TypeError, ValueError):  # another version of the option took values of another type
        return False


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Gives the fields of a class with their defaults, for those that an older checkpoint lacks."""
    return {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
