"""Runs with a fault built in: what finds nothing wrong with them finds nothing at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.crash import runs

Announce = Callable[[str], None]


def without_flushes(folder: Path, announce: Announce, **options: Any) -> dict[str, Any]:
    """A run whose flushes do nothing."""
    with patch.object(os, "fsync", lambda descriptor: None):
        return runs.run(folder, announce, **options)


def early(folder: Path, announce: Announce, **options: Any) -> dict[str, Any]:
    """A run that announces each save before it is made."""

    class Early:
        def on_step_end(self, trainer: Any) -> None:
            if trainer.state.global_step % 2 == 0:
                announce(f"checkpoint-{trainer.state.global_step}")

    with patch.object(runs.Witness, "on_step_end", Early.on_step_end):
        return runs.run(folder, announce, **options)


def forgetful(folder: Path, announce: Announce, **options: Any) -> dict[str, Any]:
    """A run that does not bring back the memory of one of its plugins."""
    with patch.object(runs.Witness, "load_state_dict", lambda self, state: None):
        return runs.run(folder, announce, **options)


def needy(folder: Path, announce: Announce, **options: Any) -> dict[str, Any]:
    """A run that begins only where its folder is not there yet."""
    if folder.exists():
        raise RuntimeError(f"{folder.name}: is there. Remove it.")
    return runs.run(folder, announce, **options)
