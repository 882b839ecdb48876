"""Turns a value as its source wrote it into the type that an option takes.

Python objects are taken as they are; files and text get the conversions they need. What cannot be converted is left
as it is, so that validation, which comes last, tells every mistake in one place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

Kind = Literal["python", "file", "text"]
"""Who wrote a value: a program, a configuration file, or a command line or environment variable."""

NOTHING_WORDS: Final = frozenset({"none", "null"})
TRUE_WORDS: Final = frozenset({"true", "yes", "on", "1", "t", "y"})
FALSE_WORDS: Final = frozenset({"false", "no", "off", "0", "f", "n"})
# YAML 1.1 takes 1e-3 for text: its floats need a point.
_EXPONENT: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def converted(value: object, annotation: Any, kind: Kind) -> object:
    """Gives `value` as the type in `annotation` where its source could not write that type itself."""
    if kind == "text":
        return _from_text(value, annotation)
    if kind == "file":
        return _from_file(value, annotation)
    return plain(value)


def readings(value: object, kind: Kind) -> Iterator[object]:
    """Gives what `value` may stand for where no type says what is wanted."""
    if kind == "text" and isinstance(value, str):
        yield from _candidates(value)
    else:
        yield plain(value)


def plain(value: object) -> object:
    """Gives the plain value of an enum member or of a number of numpy's."""
    if isinstance(value, Enum):
        return value.value
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()  # type: ignore[attr-defined]  # numpy is not imported for this
    return value


def as_json_would(value: object, annotation: Any) -> object:
    """Gives what strict validation of JSON makes of `value`: a list of a tuple, a path of text.

    Raises:
        ValueError: JSON has no such value, or it does not fit the type.
    """
    try:
        return _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except TypeError as error:
        raise ValueError("has no form in JSON") from error


def as_switch(value: object, kind: Kind) -> object:
    """Gives True, False or None where text means one of these, and a mapping where it is one in JSON."""
    if kind != "text" or not isinstance(value, str):
        return value
    word = value.strip().lower()
    if word in NOTHING_WORDS:
        return None
    if word in TRUE_WORDS | FALSE_WORDS:
        return word in TRUE_WORDS
    try:
        return json.loads(value)
    except ValueError:
        return value


def takes_list(annotation: Any) -> bool:
    """Whether a type is a list, a tuple or a set, or may be one."""
    origin = get_origin(annotation) or annotation
    if _is_wrapper(origin):
        return any(takes_list(inner) for inner in get_args(annotation))
    return origin in {list, tuple, set, frozenset}


def takes_bool(annotation: Any) -> bool:
    """Whether a type is a bool, or may be one."""
    if _is_wrapper(get_origin(annotation)):
        return any(takes_bool(inner) for inner in get_args(annotation))
    return annotation is bool


def with_enums(annotation: Any, change: Callable[[type[Enum]], Any]) -> Any:
    """Gives a type in which `change` took the place of every enum."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return change(annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal or not inner:
        return annotation
    if origin is Annotated:
        return Annotated[(with_enums(inner[0], change), *inner[1:])]
    changed = tuple(with_enums(part, change) for part in inner)
    if changed == inner:
        return annotation
    return Union[changed] if _is_wrapper(origin) else origin[changed]  # noqa: UP007  # of a tuple


def _from_file(value: object, annotation: Any) -> object:
    if _fits(value, annotation):
        return value
    value = plain(value)
    if isinstance(value, str) and value.lower() in {"true", "false"} and _fits(True, annotation):
        return value.lower() == "true"
    if value is False and _fits("no", annotation):  # YAML 1.1 takes `no` for False
        return "no"
    read = _with_exponents(value)
    return read if _fits(read, annotation) else value


def _with_exponents(value: object) -> object:
    """Gives a value of YAML with the texts that are numbers, in lists and mappings as well."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, list):
        return [_with_exponents(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_exponents(item) for key, item in value.items()}
    return value


def _from_text(value: object, annotation: Any) -> object:
    if isinstance(value, str):
        for candidate in _candidates(value):
            if _fits(candidate, annotation):
                return candidate
    elif not isinstance(value, list):
        return value
    return _loosely(value, annotation)


def _candidates(text: str) -> Iterator[object]:
    """Gives what a text may stand for, the most special first."""
    word = text.strip().lower()
    if word in NOTHING_WORDS:
        yield None
    if word in {"true", "false"}:
        yield word == "true"
    read: object = text
    with suppress(ValueError):
        read = json.loads(text)
    if not isinstance(read, str):  # quotes around a text are a part of it
        yield read
    yield text
    if isinstance(read, str):
        yield read
    if word in TRUE_WORDS | FALSE_WORDS:
        yield word in TRUE_WORDS
    yield _split(text)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _fits(value: object, annotation: Any) -> bool:
    try:
        _adapter(annotation).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _loosely(value: object, annotation: Any) -> object:
    """Gives text converted as pydantic does when it is not strict; the items of a list, too."""
    readings = [value, _split(value)] if isinstance(value, str) and takes_list(annotation) else [value]
    if isinstance(value, str) and value.lstrip().startswith("{"):  # an object of a class, as JSON
        with suppress(ValueError):
            readings.append(json.loads(value))
    for reading in readings:
        try:
            return _adapter(annotation).validate_python(reading, strict=False)
        except ValidationError:
            continue
    return _split(value) if isinstance(value, str) and takes_list(annotation) else value


def _is_wrapper(origin: Any) -> bool:
    """Whether a type's arguments are alternatives or decoration, not contents."""
    return origin is Annotated or getattr(origin, "__name__", "") in {"Union", "UnionType"}


@lru_cache(maxsize=512)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    alone = _without_bounds(annotation)
    try:
        return TypeAdapter(alone, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type with a configuration of its own takes none
        return TypeAdapter(alone)


def _without_bounds(annotation: Any) -> Any:
    """Gives the type alone: a value out of bounds is read all the same, and found by validation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _without_bounds(get_args(annotation)[0])
    if _is_wrapper(origin):
        return Union[tuple(_without_bounds(inner) for inner in get_args(annotation))]  # noqa: UP007  # of a tuple
    return annotation
