"""The client of the Hub, and its errors in words."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from trainer_core import mask_text

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_HALF: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO: Final = re.compile(rf"{_HALF}/{_HALF}")
_TRANSIENT: Final = frozenset({408, 409, 429})
"""Too late, in conflict with what goes on at the same time, too often; all from 500 on are as well."""
_SERVER: Final = 500
_MASK: Final = "***"
SILENCE_SECONDS: Final = 300.0
"""How long a connection may be silent before it counts as failed; longer than the Hub takes for any answer.

Files that `hf_xet` moves go over connections of its own, which this does not reach.
"""


def endpoint_in_use(endpoint: str | None = None) -> str:
    """Gives the Hub's address: `endpoint`, else what the variable HF_ENDPOINT says now, else the library's."""
    from huggingface_hub import constants

    return (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def hub_api(token: str | None = None, endpoint: str | None = None) -> HfApi:
    """Gives a client of the Hub.

    Args:
        token: None for the one that the user logged in with, or the variable HF_TOKEN.
        endpoint: as for `endpoint_in_use`.
    """
    from huggingface_hub import HfApi

    import trainer_core

    _end_silence()
    return HfApi(
        endpoint=endpoint_in_use(endpoint),
        token=token or None,
        library_name="trainer_core",
        library_version=trainer_core.__version__,
    )


def _end_silence() -> None:
    """Sets those limits of connections that nobody set: the library, whose session all share, sets none."""
    from huggingface_hub import get_session

    session = get_session()
    limits = session.timeout.as_dict()
    if None in limits.values():
        all_of_them = {name: SILENCE_SECONDS if limit is None else limit for name, limit in limits.items()}
        session.timeout = type(session.timeout)(**all_of_them)


def is_repo_id(text: str) -> bool:
    """Whether a text can be the id of a repository, `owner/name`."""
    return _REPO.fullmatch(text) is not None and "--" not in text and ".." not in text


def status_of(error: BaseException) -> int | None:
    """Gives the HTTP status that an error, or what it was raised from, came with."""
    for one in _chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may go well later: the Hub was not reached, cut off, busy or out of order."""
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT or status >= _SERVER
    return any(isinstance(one, (ConnectionError, TimeoutError)) or _is_of_transport(one) for one in _chain(error))


def _is_of_transport(error: BaseException) -> bool:
    """Whether an error is the HTTP library's for a line that failed; which library, the Hub's client chooses."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def retry_after(error: BaseException) -> float | None:
    """Gives the seconds that the Hub asks to wait; None where it does not say."""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", {})
        text = headers.get("Retry-After", "")
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
    return None


def in_words(error: BaseException, *secrets: str | None) -> str:
    """Gives an error in one line without its full stop, with `secrets` and whatever looks like a token masked."""
    said = getattr(error, "server_message", None) or str(error).strip().partition("\n\n")[2] or str(error)
    status = status_of(error)
    cause = f"{type(error).__name__}{f' {status}' if status is not None else ''}"
    return masked(f"{cause}: {' '.join(said.split())}".rstrip(":. "), *secrets)


def masked(text: str, *secrets: str | None) -> str:
    """Gives a text with `secrets` and whatever looks like a token masked."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, _MASK)
    return mask_text(text)


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found
