"""Validates given values into a model: strictly, but with JSON's one form for what Python has several of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from trainer_core.settings.conversion import as_json_would
from trainer_core.settings.section import Given, problems_of


def fill(model: BaseModel, given: Mapping[str, Given], name: str) -> list[str]:
    """Validates `given` into `model`, which is new and empty; gives the mistakes."""
    kind = type(model)
    values = {field: one.value for field, one in given.items()}
    try:
        kind.__pydantic_validator__.validate_python(values, self_instance=model)
    except ValidationError as error:
        first = error
    else:
        return []
    for details in first.errors(include_url=False):
        field = str(details["loc"][0]) if details["loc"] else ""
        if field in values and field in kind.model_fields:
            values[field] = _relaxed(values[field], kind.model_fields[field].annotation)
    try:
        kind.__pydantic_validator__.validate_python(values, self_instance=model)
    except ValidationError as error:
        return problems_of(error, kind.model_fields, given, name)
    return []


def _relaxed(value: object, annotation: Any) -> object:
    """Gives a value of another Python type where JSON has one form for both: a tuple for a list, text for a path."""
    if isinstance(value, (str, list, tuple, dict)):
        with suppress(ValueError):
            return as_json_would(value, annotation)
    return value
