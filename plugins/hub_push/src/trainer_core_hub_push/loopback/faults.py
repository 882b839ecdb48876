"""What goes wrong on request: which requests it meets, and how."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Literal

Kind = int | Literal["delay", "cut", "lost", "cut_answer"]


@dataclass(slots=True)
class Request:
    """A request as it arrived.

    Attributes:
        method, path, query: of its first line; the path is not decoded.
        status: of the answer; 0 while there is none, and when the connection was closed instead.
        num_bytes: of the body.
    """

    method: str
    path: str
    query: str = ""
    status: int = 0
    num_bytes: int = 0


@dataclass(slots=True)
class Fault:
    """A fault that some requests meet.

    Attributes:
        method: of the requests; "*" for any.
        path: pattern that is searched in the path.
        kind: a status to answer with, without doing anything; "delay" for a late answer; "cut" for a connection closed
            in the middle of the request; "lost" for one closed after the request was done; "cut_answer" for an answer
            of which half arrives.
        at: the first matching request that meets it, counted from 1.
        times: how many from there on; None for all.
        seconds: of the delay.
        retry_after: seconds in the header of that name; None for no header.
        seen: matching requests so far.
    """

    method: str
    path: str
    kind: Kind
    at: int = 1
    times: int | None = 1
    seconds: float = 0.0
    retry_after: float | None = None
    seen: int = 0

    def meets(self, request: Request) -> bool:
        """Counts a request and tells whether it meets this fault."""
        if self.method not in ("*", request.method) or re.search(self.path, request.path) is None:
            return False
        self.seen += 1
        return self.seen >= self.at and (self.times is None or self.seen < self.at + self.times)


class Line:
    """A network line of limited bandwidth, shared by all connections."""

    def __init__(self) -> None:
        self.bytes_per_second: float | None = None
        self._free_at = 0.0
        self._lock = Lock()

    def carry(self, num_bytes: int, wait: Callable[[float], object]) -> None:
        """Waits as long as `num_bytes` take."""
        if not self.bytes_per_second:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + num_bytes / self.bytes_per_second
            seconds = self._free_at - time.monotonic()
        wait(seconds)
