"""Reads configuration files with pydantic-settings; imported when a file is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)


def _named(values: object) -> dict[str, Any]:
    """Gives the options of a file; YAML 1.1 has names that are no text, such as `no`."""
    if not isinstance(values, Mapping):
        raise TypeError(f"it holds a {type(values).__name__}, no mapping of options")
    return {str(name): value for name, value in values.items()}


class _Yaml(YamlConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return _named(super()._read_file(file_path))


class _Toml(TomlConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return _named(super()._read_file(file_path))


class _Json(JsonConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return _named(super()._read_file(file_path))


READERS: Final = {".yaml": _Yaml, ".yml": _Yaml, ".toml": _Toml, ".json": _Json}
"""Ending of a file's name -> what reads it."""


def read_file(path: str, suffix: str) -> dict[str, Any]:
    """Gives what a file holds, name by name; raises what its parser raises."""
    source = READERS[suffix](BaseSettings, Path(path))
    return dict(source.init_kwargs)
