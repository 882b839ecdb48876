"""Who gave each value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer_core.settings.merging import Merged
from trainer_core.settings.section import DEFAULT, Section
from trainer_core.settings.vocabulary import Place, Vocabulary

DERIVED: Final = "follows from "
"""How the source of a value begins that nobody gave and another option implies."""


def sources_of(words: Vocabulary, merged: Merged, sections: Mapping[str, Section]) -> dict[str, str]:
    """Gives the source of every option and section, under each of its names."""
    sources = dict.fromkeys(words.core.model_fields, DEFAULT)
    sources.update((name, given.source) for name, given in merged.core.items())
    for name in words.sections:
        sources[name] = merged.switched.get(name, DEFAULT)
    for name, section in sections.items():
        for field in type(section).model_fields:
            given = merged.sections[name].get(field)
            sources[str(Place(name, field))] = DEFAULT if given is None else given.source
    for flat, place in words.flat.items():
        if place.section in sections:
            sources[flat] = sources[str(place)]
    return sources
