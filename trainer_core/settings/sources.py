"""Where settings come from besides keywords: the environment and configuration files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from trainer_core.settings.discovery import BLOCK_VARIABLE
from trainer_core.settings.merging import Layer
from trainer_core.settings.secrecy import mask_text
from trainer_core.settings.section import Given

PREFIX: Final = "TRAINER_CORE_"


def environment_layer(environment: Mapping[str, str] | None = None) -> Layer:
    """Gives what TRAINER_CORE_<NAME> variables say; `__` stands for the dot of a nested name."""
    entries = [
        Given(text, f"environment {variable}", variable.removeprefix(PREFIX).lower().replace("__", "."))
        for variable, text in sorted((os.environ if environment is None else environment).items())
        if variable.startswith(PREFIX) and variable != BLOCK_VARIABLE
    ]
    return Layer(entries, kind="text")


def file_layers(paths: Iterable[str | os.PathLike[str]], suffix: str = "") -> list[Layer]:
    """Gives a layer for each YAML, TOML or JSON file; what cannot be read is told in the layer's problems.

    Args:
        paths: of the files.
        suffix: says what they are; empty leaves it to the ending of each file's name.
    """
    return [_file_layer(os.fspath(path), suffix) for path in paths]


def _file_layer(path: str, suffix: str) -> Layer:
    if not Path(path).expanduser().is_file():
        return Layer([], "file", [f"{path}: is no file. Correct the path of the settings file."])
    # pydantic-settings costs 0.1 s to import, and only files and command lines need it.
    from trainer_core.settings.files import READERS, read_file

    suffix = suffix or Path(path).suffix.lower()
    if suffix not in READERS:
        known = ", ".join(READERS)
        return Layer([], "file", [f"{path}: is no settings file, got the ending {suffix!r}. Use one of {known}."])
    try:
        values = read_file(path, suffix)
    except Exception as error:  # three parsers, each with errors of its own
        reason = mask_text(" ".join(str(error).split()), pairs=True)  # it quotes the line
        return Layer([], "file", [f"{path}: cannot be read ({type(error).__name__}: {reason}). Correct the file."])
    return Layer([Given(value, path, name) for name, value in values.items()], "file")
