"""Levels of loggers, set for the time of a run and put back after it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Final

OURS: Final = "trainer_core"
"""The logger above all of the library's."""

LEVELS: Final[Mapping[str, int]] = {
    "detail": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, so that a progress display which replaces it stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:  # the protocol of logging: a message that cannot be written ends nothing
            self.handleError(record)


class Levels:
    """Sets levels and puts them back."""

    def __init__(self) -> None:
        self._before: list[tuple[logging.Logger, int]] = []
        self._handled: list[tuple[logging.Logger, logging.Handler]] = []

    def set(self, names: Iterable[str], level: str, prefix: str = "") -> None:
        """Gives the loggers `names` a level; one that nothing listens to is heard on stderr.

        Args:
            names: of loggers.
            level: a key of `LEVELS`, or "passive" to change nothing.
            prefix: stands before each line on stderr.
        """
        if level == "passive":
            return
        # parents before children, so that what a parent's new handler writes gets none of its own
        for name in sorted(set(names), key=lambda name: (name != "root", name)):
            logger = logging.getLogger(name)
            self._before.append((logger, logger.level))
            logger.setLevel(LEVELS[level])
            if not _is_heard(logger):
                handler = StderrHandler()
                handler.setFormatter(logging.Formatter(f"{prefix}%(levelname)s %(name)s: %(message)s"))
                logger.addHandler(handler)
                self._handled.append((logger, handler))

    def put_back(self) -> None:
        """Gives every logger the level it had, and takes our handlers away."""
        while self._handled:
            logger, handler = self._handled.pop()
            logger.removeHandler(handler)
            handler.close()
        while self._before:
            logger, level = self._before.pop()
            logger.setLevel(level)


def _is_heard(logger: logging.Logger | None) -> bool:
    """Tells whether a message of `logger` reaches a handler that does something with it."""
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
