"""Runs with a fault built in: what finds nothing wrong with them finds nothing at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def stuck(folder: Path, announce: Announce, **options: Any) -> dict[str, Any]:
    """A run that never ends where a flush fails, and says nothing."""
    fsync = os.fsync

    def flush(descriptor: Any) -> None:
        try:
            fsync(descriptor)
        except OSError:
            time.sleep(3600)

    with patch.object(os, "fsync", flush):
        return runs.run(folder, announce, **options)


def needy(folder: Path, announce: Announce, **options: Any) -> dict[str, Any]:
    """A run that begins only where its folder is not there yet."""
    if folder.exists():
        raise RuntimeError(f"{folder.name}: is there. Remove it.")
    return runs.run(folder, announce, **options)


def dead() -> None:
    """What dies when it is prepared."""
    os._exit(3)


@contextmanager
def lingering() -> Iterator[None]:
    """What does not end when it is asked to."""
    yield
    time.sleep(3600)
