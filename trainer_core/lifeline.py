"""A connection on which two ranks tell each other, line by line, that they live and what they do."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

MAX_LINE_BYTES: Final = 2**16
"""A longer line is no word of ours; who sends it is not heard."""

_open: Final[set[socket.socket]] = set()


def _let_go() -> None:
    """Closes what a forked child inherited: a worker that outlives its killed rank must not seem to be that rank."""
    for connection in _open:
        connection.close()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class Lifeline:
    """One end of a connection; neither sending nor reading waits.

    Args:
        connection: to the other rank.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        _open.add(connection)
        self.connection = connection
        self._lock = threading.Lock()
        self._read = b""

    def send(self, **words: Any) -> None:
        """Sends a line; one that the other end does not take is left out: its silence tells more."""
        with self._lock, contextlib.suppress(OSError):
            self.connection.send(json.dumps(words).encode() + b"\n")

    def receive(self) -> Iterator[dict[str, Any]]:
        """Gives the lines that have come.

        Raises:
            EOFError: the other end is closed, or what it says is no line of ours.
        """
        try:
            more = self.connection.recv(MAX_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError from error
        if not more or len(self._read) > MAX_LINE_BYTES:
            raise EOFError
        *lines, self._read = (self._read + more).split(b"\n")
        for line in lines:
            try:
                words = json.loads(line)
            except ValueError as error:
                raise EOFError from error
            if not isinstance(words, dict):
                raise EOFError
            yield words

    def close(self) -> None:
        """Closes this end."""
        _open.discard(self.connection)
        self.connection.close()


def listen(host: str) -> socket.socket:
    """Gives a socket that ranks can connect to, on this machine alone where `host` names it so."""
    if host in ("localhost", "127.0.0.1", "::1"):
        listener = socket.create_server(("127.0.0.1", 0))
    elif socket.has_dualstack_ipv6():
        listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", 0))
    listener.setblocking(False)
    _open.add(listener)
    return listener


def connect(host: str, port: int, seconds: float) -> Lifeline:
    """Gives a lifeline to the rank that listens there.

    Raises:
        OSError: it cannot be reached.
    """
    there = "127.0.0.1" if host in ("localhost", "::1") else host
    return Lifeline(socket.create_connection((there, port), timeout=seconds))


def leave(listener: socket.socket) -> None:
    """Closes what `listen` gave."""
    _open.discard(listener)
    listener.close()
