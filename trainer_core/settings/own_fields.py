"""The fields of a script's own classes, dataclasses and pydantic models, as options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Union, get_type_hints

from pydantic import BaseModel, Field, Strict
from pydantic.fields import FieldInfo

from trainer_core.settings.conversion import with_enums


@dataclass(frozen=True)
class OwnField:
    """One option.

    Attributes:
        annotation: type of its values, with what pydantic checks besides.
        info: its default, and what `--help` says.
    """

    annotation: Any
    info: FieldInfo


def fields_of(kind: type, problems: list[str]) -> dict[str, OwnField]:
    """Gives the options of a class by the names that its constructor takes; what is wrong is added to `problems`."""
    if not isinstance(kind, type) or not (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)):
        name = getattr(kind, "__name__", repr(kind))
        problems.append(f"ArgumentParser: {name} is no dataclass and no pydantic model. Decorate it.")
        return {}
    if hasattr(kind, "__pydantic_fields__"):
        return _of_pydantic(kind, kind.__pydantic_fields__, problems)
    try:
        types = get_type_hints(kind, include_extras=True)
    except (NameError, TypeError) as error:
        problems.append(f"ArgumentParser: {kind.__name__} has annotations that cannot be read ({error}). Import them.")
        return {}
    return {field.name: _of_dataclass(field, types[field.name]) for field in dataclasses.fields(kind) if field.init}


def _of_dataclass(field: dataclasses.Field[Any], annotation: Any) -> OwnField:
    about: dict[str, Any] = {"description": field.metadata.get("help")}
    if field.default is not dataclasses.MISSING:
        about["default"] = field.default
    elif field.default_factory is not dataclasses.MISSING:
        about["default_factory"] = field.default_factory
    if field.default is None:  # `size: int = None` is common, and means that None is a value
        annotation = Union[annotation, None]  # noqa: UP007  # the annotation may be no class
    return OwnField(with_enums(annotation, _by_value), Field(**about))


def _of_pydantic(kind: type, fields: Mapping[str, FieldInfo], problems: list[str]) -> dict[str, OwnField]:
    """Gives the fields under the names that pydantic takes them by, which are their aliases."""
    found = {}
    for name, field in fields.items():
        alias = field.validation_alias
        if field.init is False:
            continue
        if alias is not None and not (isinstance(alias, str) and alias.isidentifier()):
            told = f"ArgumentParser: {kind.__name__}.{name} needs an alias that is a name, got {alias!r}. Change it."
            problems.append(told)
            continue
        about: dict[str, Any] = {"description": field.description}
        if not field.is_required():
            about |= {"default_factory": field.default_factory} if field.default_factory else {"default": field.default}
        annotation = with_enums(field.annotation, _by_value)
        annotation = Annotated[(annotation, *field.metadata)] if field.metadata else annotation
        found[alias or name] = OwnField(annotation, Field(**about))
    return found


def _by_value(kind: type[Enum]) -> Any:
    """Lets a choice be given by its value, and a wrong one be told with those that there are."""
    return Annotated[kind, Strict(False)]
