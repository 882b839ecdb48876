"""What a group of settings is, and how a mistake in a setting is told.

A mistake reads *where: what is wrong, got value (from source). What to do.* Field validators raise
`ValueError("must be even. Use 2.")`: up to the first full stop it is what is wrong, after it what to do.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trainer_core.settings.change import Change
from trainer_core.settings.secrecy import mask_mistaken, mask_secrets

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from trainer_core.settings.arguments import TrainingArguments

DEFAULT: Final = "default"
"""The source of a value that nobody gave."""


class Section(BaseModel):
    """The settings of one plugin; present means that the plugin is on.

    Types are taken strictly: `"8"` is no number and `True` is no count.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    flat: ClassVar[Mapping[str, str]] = {}
    """Flat name of `TrainingArguments` -> field of this section."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spelling -> flat name."""
    warn_aliases: ClassVar[frozenset[str]] = frozenset()
    """Spellings of `aliases` whose use is logged as a warning."""
    switch: ClassVar[str | None] = None
    """Flat name that alone turns the plugin on; `None` or `False` means off, and then its other flat names are
    mistakes. It need not stand in `flat`: then it is a plain True or False."""
    methods: ClassVar[Mapping[str, str]] = {}
    """Name on `TrainingArguments` -> method of this section, which is called with the arguments first."""
    on_by_default: ClassVar[bool] = False
    """Whether the section is present unless `name=None` or `name=False` is given."""
    when_changed: ClassVar[Mapping[str, Change]] = {}
    """Field -> what another value means for a run that is resumed; a field that is not here is said."""

    def contradictions(self, args: TrainingArguments) -> Iterable[str]:
        """Gives whole sentences on what cannot be meant together; asked when every single value is valid."""
        return ()

    def unread(self, args: TrainingArguments) -> Iterable[tuple[str, str]]:
        """Gives (flat name, "option=value") of what nothing reads beside another option; said where it was given."""
        return ()

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, mask_secrets(value, name or "")) for name, value in super().__repr_args__()]


def _whole_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("must be a whole number of steps or a share below 1. Round it")
    return int(value) if value >= 1 else value


Interval = Annotated[float, Field(gt=0), AfterValidator(_whole_or_share)]
"""Every so many steps (1 or more, whole), or every such share of all steps (below 1)."""
StepCount = Annotated[float, Field(ge=0), AfterValidator(_whole_or_share)]
"""So many steps (whole), or such a share of all steps (below 1); 0 for none."""


@dataclass(frozen=True)
class Remedy:
    """Stands in a field's `Annotated` and says what to do when its value is wrong."""

    text: str


@dataclass(frozen=True)
class Given:
    """A value as somebody gave it."""

    value: object
    source: str = DEFAULT
    spelled: str = ""
    """The name it was given under."""


def problem(where: str, what: str, given: Given, remedy: str = "") -> str:
    """Gives the sentence for one mistake."""
    got = f", got {shown(where, given.value)}"
    source = f" (from {given.source})" if given.source != DEFAULT else ""
    end = remedy.strip()
    return f"{where}: {what}{got}{source}." + (f" {end.rstrip('.')}{'' if end.endswith('?') else '.'}" if end else "")


_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def shown(where: str, value: object) -> str:
    """Gives a value for a message: shortened, and masked where it is, or may be meant as, a secret."""
    return _short.repr(mask_mistaken(value, where))


def problems_of(
    error: ValidationError, fields: Mapping[str, FieldInfo], given: Mapping[str, Given], prefix: str
) -> list[str]:
    """Gives one sentence for each wrong one of `fields`; `prefix` names their class in those that nobody gave."""
    found: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_place(details, given, prefix), []).append(details)
    return [_sentence(where, details, fields, given) for where, details in found.items()]


def _place(details: ErrorDetails, given: Mapping[str, Given], prefix: str) -> str:
    """Gives the name that was used, and the way into a list or mapping; a union's branch is no part of it."""
    if not details["loc"]:
        return prefix
    field, *rest = details["loc"]
    name = str(field)
    where = given[name].spelled if name in given else ".".join(part for part in (prefix, name) if part)
    inner: object = given[name].value if name in given else None
    for part in rest:
        if isinstance(inner, Mapping) and part in inner:
            where, inner = f"{where}.{part}", inner[part]
        elif isinstance(inner, Sequence) and isinstance(part, int) and part < len(inner):
            where, inner = f"{where}[{part}]", inner[part]
        else:
            break
    return where


def _sentence(
    where: str, details: Sequence[ErrorDetails], fields: Mapping[str, FieldInfo], given: Mapping[str, Given]
) -> str:
    first = details[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return f"{where}: is needed, and nothing was given. Set it."
    field = fields.get(name)
    told = [_explained(one, None if field is None else field.default) for one in details]
    what = " or ".join(dict.fromkeys(what for what, _ in told)).replace(" or must be ", " or ")
    if not first["loc"]:  # a validator of the whole section: there is no one value
        return f"{where}: {what}. {told[0][1]}".rstrip()
    own = [entry.text for entry in field.metadata if isinstance(entry, Remedy)] if field is not None else []
    one = given.get(name, Given(first["input"]))
    got = one.value if where == one.spelled else first["input"]  # a validator may have read text into something else
    return problem(where, what, Given(got, one.source), own[0] if own else told[0][1])


def _explained(details: ErrorDetails, default: object) -> tuple[str, str]:
    """Gives what is wrong and what to do about it."""
    context = details.get("ctx", {})
    kind, value = details["type"], details["input"]
    if kind in {"value_error", "assertion_error"}:
        what, _, remedy = str(context["error"]).partition(". ")
        return what.rstrip("."), remedy or "Change it or leave it out."
    if kind in {"literal_error", "enum"}:
        return f"must be one of {context['expected'].replace(' or ', ', ')}", _nearest(value, context["expected"])
    if kind in BOUNDS:
        sign, limit = BOUNDS[kind]
        bound = next(iter(context.values()))
        bound = int(bound) if isinstance(bound, float) and bound.is_integer() else bound
        return f"must be {sign} {bound}", limit.format(bound)
    for family, (wrong, advice) in TYPES.items():
        if kind.startswith(family):
            return wrong, advice(value, default)
    return details["msg"].replace("Input should be", "must be").replace("String should", "must"), "Change it."


def _nearest(value: object, expected: str) -> str:
    choices = [choice.strip("'\" ") for choice in expected.replace(" or ", ", ").split(", ")]
    close = get_close_matches(str(value), choices, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "Use one of these."


def _example(noun: str) -> Callable[[object, object], str]:
    def remedy(value: object, default: object) -> str:
        if isinstance(value, str) and _is_number(value):
            return f"Write {value} without quotes"
        return f"Give {noun}" + (f", for example {default}" if type(default) in {int, float} else "")

    return remedy


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _plain(text: str) -> Callable[[object, object], str]:
    return lambda value, default: text


BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than_equal": ("at least", "Use {} or more."),
    "greater_than": ("greater than", "Use a value above {}."),
    "less_than_equal": ("at most", "Use {} or less."),
    "less_than": ("less than", "Use a value below {}."),
}
# The beginning of pydantic's error type -> what is wrong, and what to do.
TYPES: Final[Mapping[str, tuple[str, Callable[[Any, object], str]]]] = {
    "int": ("must be a whole number", _example("a whole number")),
    "float": ("must be a number", _example("a number")),
    "finite": ("must be a finite number", _example("a finite number")),
    "bool": ("must be true or false", _plain("Use True or False.")),
    "too_short": ("must not be empty", _plain("Give a value.")),
    "string_too_short": ("must not be empty", _plain("Give some text.")),
    "string": ("must be text", _plain("Put it in quotes.")),
    "list": ("must be a list", _plain("Put it in square brackets.")),
    "tuple": ("must be a list", _plain("Put it in square brackets.")),
    "dict": ("must be a mapping", _plain("Give names with values.")),
    "none": ("must be None", _plain("Leave it out.")),
    "extra": ("is not an option", _plain("Leave it out.")),
}
