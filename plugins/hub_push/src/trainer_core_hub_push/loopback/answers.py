"""How requests come in and answers go out: paths to functions, results and errors to HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from trainer_core_hub_push.loopback.store import Account, MissingError, Repository, Store

TYPES: Final[Mapping[str, str]] = {"models": "model", "datasets": "dataset", "spaces": "space"}
REPO: Final = r"/api/(?P<types>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"


@dataclass(frozen=True)
class Answer:
    """Status, body and headers of an answer; a mapping or list goes out as JSON."""

    status: int = 200
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> tuple[bytes, dict[str, str]]:
        """Gives the bytes and all headers."""
        if isinstance(self.body, bytes):
            return self.body, dict(self.headers)
        return json.dumps(self.body).encode(), {"Content-Type": "application/json; charset=utf-8", **self.headers}


class RefusedError(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, status: int, text: str, code: str | None = None, **headers: str) -> None:
        super().__init__(text)
        named = {"X-Error-Message": text} | ({} if code is None else {"X-Error-Code": code}) | headers
        self.answer = Answer(status, {"error": text}, named)


@dataclass(frozen=True)
class Call:
    """A request with all that its handler needs."""

    store: Store
    base: str
    """The endpoint."""
    account: Account | None
    query: str
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    words: Mapping[str, str]
    """The named parts of the path, decoded."""

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        value: dict[str, Any] = json.loads(self.body or b"{}")
        return value

    @property
    def form(self) -> dict[str, list[str]]:
        """The body as a form."""
        return parse_qs(self.body.decode(), keep_blank_values=True)

    @property
    def parameters(self) -> dict[str, list[str]]:
        """The query."""
        return parse_qs(self.query, keep_blank_values=True)

    def repository(self, *, write: bool = False) -> Repository:
        """Gives the repository that the path names.

        Raises:
            MissingError: there is none that this account may see.
            RefusedError: the account may not write, and `write` is wanted.
        """
        repository = self.store.find(TYPES[self.words.get("types") or "models"], self.words["repo"], self.account)
        if write:
            self.check_may_write(repository.owner)
        return repository

    def check_may_write(self, owner: str) -> None:
        """Refuses a token that may not write under `owner`."""
        if self.account is None:
            raise RefusedError(401, "Invalid username or password.")
        if not self.store.may_write(self.account, owner):
            right = "a write token" if self.store.belongs(self.account, owner) else f"rights under {owner!r}"
            raise RefusedError(403, f"Forbidden: this needs {right}")

    def url(self, repository: Repository) -> str:
        """Gives the address of a repository's page."""
        prefix = "" if repository.type == "model" else f"{repository.type}s/"
        return f"{self.base}/{prefix}{repository.id}"


Handler = Callable[[Call], Answer]
_ROUTES: Final[list[tuple[str, re.Pattern[str], Handler]]] = []


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Makes a function the handler of a method and a path."""

    def take(handler: Handler) -> Handler:
        _ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return take


def find_handler(method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
    """Gives the handler of a path and the path's named parts; None for a path that is unknown."""
    for wanted, pattern, handler in _ROUTES:
        match = pattern.fullmatch(path) if method in (wanted, "HEAD" if wanted == "GET" else wanted) else None
        if match is not None:
            return handler, {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
    return None


def answer_to(call: Call, handler: Handler) -> Answer:
    """Gives the answer of a handler, an error's included."""
    try:
        return handler(call)
    except RefusedError as refused:
        return refused.answer
    except MissingError as missing:
        status = 401 if missing.code == "RepoNotFound" and call.account is None else 404
        headers = {"X-Error-Code": missing.code, "X-Error-Message": missing.text}
        headers |= {} if missing.commit is None else {"X-Repo-Commit": missing.commit}
        return Answer(status, {"error": missing.text}, headers)
