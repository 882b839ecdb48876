"""One JSON schema of a settings file: flat names, groups of the core, and sections of plugins."""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from trainer_core.settings import names
from trainer_core.settings.accepted import ACCEPTED
from trainer_core.settings.vocabulary import Place, Vocabulary

TEMPLATE: Final = "#/$defs/{model}"


def json_schema(words: Vocabulary) -> dict[str, Any]:
    """Gives the schema of everything that `words` understands."""
    models = [words.core, *words.sections.values()]
    wanted, definitions = models_json_schema([(model, "validation") for model in models], ref_template=TEMPLATE)
    found: dict[str, Any] = definitions.get("$defs", {})
    by_model = {model: found[ref["$ref"].rpartition("/")[2]] for (model, _), ref in wanted.items()}
    core = by_model[words.core]["properties"]
    properties = {**core, **_groups(words, core), **_sections(words, by_model), **_flat(words, by_model)}
    properties |= {alias: _also(properties, entry) for alias, entry in names.ALIASES.items()}
    properties |= {alias: properties[flat] for alias, flat in words.aliases.items()}
    properties |= {name: {"enum": list(values)} for name, values in ACCEPTED.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": words.core.__name__,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {name: one for name, one in found.items() if one is not by_model[words.core]},
    }


def _groups(words: Vocabulary, core: dict[str, Any]) -> dict[str, Any]:
    return {
        group: {
            "type": "object",
            "properties": {name: schema for name, schema in core.items() if name in fields},
            "additionalProperties": False,
        }
        for group, fields in words.groups.items()
    }


def _sections(words: Vocabulary, by_model: dict[Any, Any]) -> dict[str, Any]:
    off_or_default = {"type": ["boolean", "null"]}
    return {name: {"anyOf": [by_model[kind], off_or_default]} for name, kind in words.sections.items()}


def _flat(words: Vocabulary, by_model: dict[Any, Any]) -> dict[str, Any]:
    def schema(place: Place) -> Any:
        return by_model[words.sections[place.section]]["properties"][place.field]

    flat = {name: schema(place) for name, place in words.flat.items()}
    switches = {name: {"type": ["boolean", "null"]} for name in words.switches if name not in flat}
    off = {name: {"anyOf": [flat[name], {"enum": [None, False]}]} for name in words.switches if name in flat}
    return {**flat, **switches, **off}


def _also(properties: dict[str, Any], alias: names.Alias) -> Any:
    return {"type": "boolean"} if alias.write is not None else properties[alias.field]
