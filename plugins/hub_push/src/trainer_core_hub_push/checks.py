"""What can be no token, no branch and no argument of a push, told before the Hub is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from trainer_core import PluginError
from trainer_core_hub_push.client import masked

MALFORMED: Final = "holds characters that no token has"
COPY_AGAIN: Final = "Copy it again, without blanks, line breaks and letters beyond ASCII."
NO_BRANCH: Final = "is no name of a branch"
AS_GIT: Final = "Write it as git takes it, such as 'main'."
_TOKEN: Final = re.compile(r"[!-~]+")
_PART: Final = r"(?!\.)[^\x00-\x20\x7f~^:?*\[\\/]+(?<!\.lock)"
_BRANCH: Final = re.compile(rf"(?!-)(?!.*(\.\.|@\{{))(?!@\Z){_PART}(/{_PART})*(?<!\.)", re.DOTALL)
_PLACE: Final = "push_to_hub"


def is_token(text: str) -> bool:
    """Whether a text can be a token, which travels in a line of a request."""
    return _TOKEN.fullmatch(text) is not None


def is_branch(text: str) -> bool:
    """Whether git takes a text as the name of a branch."""
    return _BRANCH.fullmatch(text) is not None


def checked_options(commit_message: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the options of a push, with the token as the Hub takes it; those of the card are not looked at.

    Raises:
        PluginError: the title, `token`, `revision` or `private` cannot be meant.
    """
    if not isinstance(commit_message, str) or not commit_message.strip():
        remedy = "Give the title of the commit, such as 'End of training'."
        raise _wrong("commit_message", "must be text that is not blank", commit_message, remedy)
    private, revision = options.get("private"), options.get("revision")
    if private is not None and not isinstance(private, bool):
        raise _wrong("private", "must be True, False or None", private, "Use one of these.")
    if revision is not None and not (isinstance(revision, str) and is_branch(revision)):
        raise _wrong("revision", NO_BRANCH, revision, AS_GIT)
    return {**options, "token": _checked_token(options.get("token"))}


def _checked_token(token: object) -> str | None:
    if token is None:
        return None
    if not isinstance(token, str):
        raise PluginError(f"{_PLACE}.token: must be text, got a {type(token).__name__}. Pass the token itself.")
    stripped = token.strip()
    if stripped and not is_token(stripped):
        raise PluginError(f"{_PLACE}.token: {MALFORMED}, got '***'. {COPY_AGAIN}")
    return stripped or None


def _wrong(name: str, what: str, value: object, remedy: str) -> PluginError:
    return PluginError(masked(f"{_PLACE}.{name}: {what}, got {value!r}. {remedy}"))
