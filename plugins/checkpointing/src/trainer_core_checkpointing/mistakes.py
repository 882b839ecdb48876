"""What a validation found, in words, and the counts that validations share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field, ValidationError

Count: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""A whole number from 0 that fits into 64 bits."""


def first_mistake(error: ValidationError) -> str:
    """Gives the first mistake with its place and value: `counters.epoch must be … , got 'x'`."""
    found = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:80] for part in found["loc"])
    what = found["msg"].removeprefix("Value error, ").removeprefix("Input should ").replace("be a valid", "be a", 1)
    got = "" if found["type"] in ("missing", "value_error", "extra_forbidden") else f", got {_short(found['input'])}"
    what = what.replace("be a integer", "be an integer")
    verb = "must " if found["msg"].startswith("Input should ") else ""
    return f"is not consistent, {f'{where}: ' if where else ''}{verb}{what[:1].lower()}{what[1:]}{got}"


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, bool | int | float | str | None) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}…"
