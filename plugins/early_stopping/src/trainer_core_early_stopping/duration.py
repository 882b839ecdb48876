"""Lengths of time, as people write them."""

from __future__ import annotations

import re
from datetime import time, timedelta
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_NUMBER: Final = r"(\d+(?:\.\d+)?)"
_PARTS: Final = re.compile(r"\s*".join(f"(?:{_NUMBER}\\s*{unit})?" for unit in _UNITS), re.IGNORECASE)
_CLOCK: Final = re.compile(r"(\d+):([0-5]\d):([0-5]\d)")
_WRONG: Final = "must be a length of time. Give seconds as a number, or text like '30s', '90m', '1d12h' or '01:30:00'."


def seconds_of(value: object) -> object:
    """Gives seconds for text, a `timedelta` or TOML's time of day; everything else as it is.

    Raises:
        ValueError: the text is no length of time.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, time):
        return value.hour * 3600.0 + value.minute * 60 + value.second + value.microsecond / 1e6
    if not isinstance(value, str):
        return value
    text = value.strip()
    if match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = map(int, match.groups())
        return hours * 3600.0 + minutes * 60 + seconds
    match = _PARTS.fullmatch(text)
    if match is None or not any(match.groups()):
        raise ValueError(_WRONG)
    return sum(float(number) * unit for number, unit in zip(match.groups(), _UNITS.values(), strict=True) if number)


def in_words(seconds: float) -> str:
    """Gives a length of time as `seconds_of` reads it, in the units that suit it: `1d12h`, `1h30m`, `0.5s`."""
    parts = []
    rest = round(seconds, 3)
    for unit, length in _UNITS.items():
        if unit == "s" or rest < length:
            continue
        whole, rest = divmod(rest, length)
        parts.append(f"{whole:.0f}{unit}")
    if round(rest, 3) or not parts:
        parts.append(f"{round(rest, 3):g}s")
    return "".join(parts)


Duration = Annotated[
    float,
    Field(gt=0),
    BeforeValidator(seconds_of),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
"""Seconds; text with units is read, too."""
