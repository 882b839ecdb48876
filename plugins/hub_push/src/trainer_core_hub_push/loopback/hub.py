"""`LoopbackHub`: the server as an object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from threading import Event, RLock, Thread
from types import TracebackType
from typing import Self

from trainer_core_hub_push.loopback import downloads, repositories, uploads
from trainer_core_hub_push.loopback.connection import Server
from trainer_core_hub_push.loopback.faults import Fault, Kind, Line, Request
from trainer_core_hub_push.loopback.store import Account, Commit, Repository, RepoType, Role, Store

HANDLERS = (repositories, uploads, downloads)
"""The modules whose functions answer; importing them makes their routes known."""


class LoopbackHub:
    """A Hub of one's own on 127.0.0.1, for tests and trials; nothing of it outlives it.

        with LoopbackHub(tokens={"hf_mine": "user"}) as hub:
            api = HfApi(endpoint=hub.endpoint, token="hf_mine")

    Entering it turns Xet off for `huggingface_hub` in this process, and puts it back at the exit: it is no part of what
    is offered here. Child processes take `environment`.

    Args:
        tokens: token -> user, or (user, "read" or "write").
        orgs: user -> organizations under which the user may write.

    Attributes:
        requests: all requests in the order in which they arrived.
        delay: seconds before every answer.
        errors: errors of the server itself; raised when it stops.
    """

    def __init__(
        self,
        tokens: Mapping[str, str | tuple[str, Role]] | None = None,
        *,
        orgs: Mapping[str, list[str]] | None = None,
    ) -> None:
        given = {"hf_loopback": "user"} if tokens is None else tokens
        accounts = {token: Account(who) if isinstance(who, str) else Account(*who) for token, who in given.items()}
        self.store = Store(accounts, orgs or {})
        self.lock, self.line = RLock(), Line()
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.delay = 0.0
        self._faults: list[Fault] = []
        self._stopping = Event()
        self._port = 0
        self._server: Server | None = None
        self._thread: Thread | None = None
        self._xet_was_off: bool | None = None

    # Running

    def __enter__(self) -> Self:
        from huggingface_hub import constants

        self._xet_was_off, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        from huggingface_hub import constants

        if self._xet_was_off is not None:
            constants.HF_HUB_DISABLE_XET = self._xet_was_off
        self.stop()
        if self.errors and error is None:
            raise self.errors[0]

    def start(self) -> None:
        """Listens, on the same port as before when it was stopped."""
        self._stopping.clear()
        self._server = Server(self, self._port)
        self._port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), name="loopback-hub", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuses connections and closes those that are open; what is stored stays."""
        if self._server is None or self._thread is None:
            return
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()
        self._server = self._thread = None

    @property
    def endpoint(self) -> str:
        """The address to give to clients."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a child process use this Hub, without a token."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    # What it holds

    def create(self, repo_id: str, *, private: bool = False, repo_type: RepoType = "model") -> Repository:
        """Makes a repository without a request."""
        with self.lock:
            return self.store.create(repo_type, repo_id, private=private)

    def repo(self, repo_id: str, repo_type: RepoType = "model") -> Repository:
        """Gives a repository.

        Raises:
            KeyError: there is none.
        """
        return self.store.repositories[repo_type, repo_id]

    def commit(
        self, repo_id: str, files: Mapping[str, bytes | None], message: str = "Someone else's", branch: str = "main"
    ) -> Commit:
        """Makes a commit without a request, as somebody else would; None for a content deletes the file."""
        with self.lock:
            repository = self.repo(repo_id)
            blobs = dict(repository.at(branch).blobs)
            for path, content in files.items():
                if content is None:
                    del blobs[path]
                else:
                    blobs[path] = self.store.blob(path, content)
            return repository.add(branch, blobs, message, "", "somebody")

    # What goes wrong, and what was asked

    def fault(
        self,
        method: str,
        path: str,
        kind: Kind,
        *,
        at: int = 1,
        times: int | None = 1,
        seconds: float = 0.0,
        retry_after: float | None = None,
    ) -> Fault:
        """Makes something go wrong from now on; see `Fault` for what."""
        fault = Fault(method, path, kind, at, times, seconds, retry_after)
        with self.lock:
            self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Lets everything go well again."""
        with self.lock:
            self._faults.clear()

    @property
    def bytes_per_second(self) -> float | None:
        """What bodies of requests and answers get of the line, all together; None for no limit."""
        return self.line.bytes_per_second

    @bytes_per_second.setter
    def bytes_per_second(self, value: float | None) -> None:
        self.line.bytes_per_second = value

    def count(self, method: str, path: str) -> int:
        """Gives how many requests of a method had a path in which the pattern is found."""
        return sum(one.method == method and re.search(path, one.path) is not None for one in list(self.requests))

    # For connections

    def arrived(self, request: Request) -> tuple[Request, list[Fault]]:
        """Notes a request; gives it with the faults that it meets."""
        with self.lock:
            self.requests.append(request)
            return request, [fault for fault in self._faults if fault.meets(request)]

    def pause(self, seconds: float) -> None:
        """Waits; a server that stops waits for nobody."""
        if seconds > 0:
            self._stopping.wait(seconds)
