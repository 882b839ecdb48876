"""What trackers are given of a row and of the settings: numbers under the guide's names, and flat values."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

logger = logging.getLogger("trainer_core.trackers")

Number = int | float
Scalar = str | int | float | bool | None

_GROUPS: Final = ("eval", "test")


class Rows:
    """Turns logged rows into metrics, and says once of each name that its values are no numbers."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def metrics(self, logs: Mapping[str, Any]) -> dict[str, Number]:
        """Gives the numbers of a row: `eval_loss` is "eval/loss", `loss` is "train/loss"; without its step."""
        found: dict[str, Number] = {}
        for name, value in logs.items():
            if name == "step":
                continue
            if isinstance(value, int | float):
                found[grouped(name)] = value
            elif name not in self._told:
                self._told.add(name)
                kind = type(value).__name__
                logger.warning("%s: is not reported, trackers take numbers, got %s. Log numbers.", name, kind)
        return found


def grouped(name: str) -> str:
    """Gives a metric's name with its group in front, as the guide's users know it."""
    for group in _GROUPS:
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return f"train/{name}"


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Gives the values of settings one by one, named "section.field"; lists become JSON."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str | int | float | bool):
            yield f"{prefix}{name}", value
        else:
            yield f"{prefix}{name}", json.dumps(value)
