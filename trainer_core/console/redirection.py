"""Other people's output while a live display stands at the bottom of the terminal.

What is printed, warned or logged to the terminal goes through the display, which puts it above itself. A stream that
is no terminal, and a process that was forked off, are left alone.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast


class Through(io.TextIOBase):
    """A stream whose whole lines go through `show`; after `release`, and in a forked process, into the stream itself.

    Args:
        stream: the terminal.
        show: takes text without its last line break.
    """

    def __init__(self, stream: TextIO, show: Callable[[str], None]) -> None:
        self.rich_proxied_file = stream  # rich writes past a stream with this attribute
        self._show = show
        self._process = os.getpid()
        self._begun = ""

    def write(self, text: str) -> int:
        """Shows every line that is complete."""
        if self._process != os.getpid():
            return self.rich_proxied_file.write(text)
        lines, line_break, rest = (self._begun + text).rpartition("\n")
        self._begun = rest
        if line_break:
            self._show(lines)
        return len(text)

    def flush(self) -> None:
        """Shows a line that is begun, such as a prompt."""
        begun, self._begun = self._begun, ""
        if begun and self._process == os.getpid():
            self._show(begun)
        self.rich_proxied_file.flush()

    def release(self) -> None:
        """Shows what is left; whoever still holds this stream writes into the real one from now on."""
        self.flush()
        self._process = -1

    def isatty(self) -> bool:
        """As the stream."""
        return self.rich_proxied_file.isatty()

    def fileno(self) -> int:
        """As the stream."""
        return self.rich_proxied_file.fileno()

    def writable(self) -> bool:
        """It is."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has a variable, which a property stands for
        """As the stream."""
        return self.rich_proxied_file.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class Redirection:
    """Puts `Through` in the place of standard output and error, and into log handlers that write to them."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._streams: dict[str, Through] = {}
        self._handlers: list[tuple[logging.StreamHandler[Any], TextIO]] = []

    def begin(self) -> None:
        """Redirects the streams that are terminals."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                through = self._streams[name] = Through(stream, self._show)
                setattr(sys, name, through)
                self._redirect_handlers(stream, through)

    def end(self) -> None:
        """Puts back what is still as `begin` left it."""
        for handler, stream in self._handlers:
            if isinstance(handler.stream, Through):
                handler.setStream(stream)
        self._handlers.clear()
        for name, through in self._streams.items():
            through.release()
            if getattr(sys, name) is through:
                setattr(sys, name, through.rich_proxied_file)
        self._streams.clear()

    def _redirect_handlers(self, stream: TextIO, through: Through) -> None:
        for handler in _handlers():
            if isinstance(handler, logging.StreamHandler) and getattr(handler, "stream", None) is stream:
                try:
                    handler.setStream(cast("TextIO", through))
                except AttributeError:  # a stream that is looked up anew each time, as logging's last resort has
                    continue
                self._handlers.append((handler, stream))


def _handlers() -> Iterator[logging.Handler]:
    yield from logging.root.handlers
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield from logger.handlers
