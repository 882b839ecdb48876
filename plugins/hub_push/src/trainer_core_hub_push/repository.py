"""A repository of the Hub: whether it may be written, and how an entry gets into it, once.

The client repeats uploads that fail, but neither the making of a repository nor a commit, whose answer may be lost
when it is done already. A commit therefore names its parent, so that of two on the same head one is refused, and bears
the mark of its entry, so that one that is there is found when the head has moved on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from trainer_core_hub_push import checks
from trainer_core_hub_push.client import in_words, is_transient, status_of

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

    from trainer_core_hub_push.entries import Entry, Push

logger = logging.getLogger("trainer_core.hub_push")

RACES: Final = 5
"""How often a commit is built anew because somebody else committed in between."""
_UNKNOWN: Final = 401
_STALE: Final = 412
_PROBE: Final = "README.md"
"""A file that is asked for permission to upload, and not uploaded."""


def refusal(api: HfApi, push: Push, said: set[str] | None = None) -> str:
    """Says in a sentence why the Hub will not take a push; empty where it will. Makes the repository.

    Args:
        api: the client to ask with.
        push: what is to be pushed.
        said: as for `prepare`.

    Raises:
        Exception: the Hub was not reached, or is out of order.
    """
    secret = secret_of(api)
    if secret is None:
        return (
            "hub_token: is needed to push, got None. "
            "Set hub_token or the variable HF_TOKEN, or log in with `hf auth login`."
        )
    if problem := malformed(secret):
        return problem
    try:
        role = api.whoami()["auth"]["accessToken"]["role"]
        if role == "read":
            return "hub_token: may only read from the Hub, got a token of role 'read'. Make one that may write."
        _check_may_write(api, prepare(api, push, said), push)
    except Exception as error:
        if is_transient(error):
            raise
        told = in_words(error, secret_of(api))
        if status_of(error) == _UNKNOWN:
            return f"hub_token: the Hub does not know it, got {told}. Make a new one, or log in with `hf auth login`."
        return f"hub_model_id: the Hub refuses {push.repo!r}, got {told}. Name a repository that the token may write."
    return ""


def secret_of(api: HfApi) -> str | None:
    """Gives the token in use: the client's, that of the environment, or that of the login."""
    from huggingface_hub import get_token

    return api.token if isinstance(api.token, str) else get_token()


def malformed(secret: str) -> str:
    """Says in a sentence that a token of the environment or the login can be none; empty where it can."""
    if checks.is_token(secret):
        return ""
    return f"hub_token: {checks.MALFORMED}, got that of HF_TOKEN or the login. {checks.COPY_AGAIN}"


def prepare(api: HfApi, push: Push, said: set[str] | None = None) -> str:
    """Makes repository and branch where they are missing, and gives the repository's whole id.

    Args:
        api: the client to ask with.
        push: where it goes.
        said: public repositories that were to be private and of which that was said; one that is found is added.
    """
    repo: str = api.create_repo(push.repo, private=push.private, exist_ok=True).repo_id
    if push.private:
        _say_public(api, repo, set() if said is None else said)
    if push.revision is not None:
        api.create_branch(repo, branch=push.revision, exist_ok=True)
    return repo


def _say_public(api: HfApi, repo: str, said: set[str]) -> None:
    if repo in said or api.repo_info(repo).private is not False:
        return
    said.add(repo)
    logger.warning(
        "%s: is public already and stays so, private=True holds for a repository that is made. Change it at %s.",
        repo,
        f"{api.endpoint}/{repo}/settings",
    )


def _check_may_write(api: HfApi, repo: str, push: Push) -> None:
    """Raises what the Hub answers to whom may not write; a small text is not uploaded before its commit."""
    from huggingface_hub import CommitOperationAdd

    probe = CommitOperationAdd(path_in_repo=_PROBE, path_or_fileobj=b"?")
    api.preupload_lfs_files(repo, [probe], revision=push.revision)


def send(api: HfApi, repo: str, entry: Entry) -> CommitInfo:
    """Commits an entry, unless it is committed already, and gives its commit.

    Raises:
        Exception: whatever the client raises; the entry may be committed all the same.
    """
    from huggingface_hub.errors import HfHubHTTPError

    push, overtaken = entry.push, None
    for _ in range(RACES):
        head = api.repo_info(repo, revision=push.revision).sha
        tried = entry.tried_on
        if tried is not None and tried != head and (done := _own_commit(api, repo, entry)) is not None:
            return done
        entry.note_try(head or "")
        try:
            with _quiet():
                return api.create_commit(
                    repo,
                    _operations(api, repo, entry),
                    commit_message=push.message,
                    commit_description=_mark(entry),
                    revision=push.revision,
                    parent_commit=head,
                )
        except HfHubHTTPError as error:
            if status_of(error) != _STALE:
                raise
            overtaken = error
    assert overtaken is not None
    raise overtaken


def _operations(api: HfApi, repo: str, entry: Entry) -> list[CommitOperationAdd | CommitOperationDelete]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files, push = entry.files(), entry.push
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file)) for name, file in files.items()
    ]
    there = api.list_repo_files(repo, revision=push.revision) if push.replaces else []
    stale = [name for name in there if name not in files and any(fnmatchcase(name, one) for one in push.replaces)]
    return operations + [CommitOperationDelete(path_in_repo=name) for name in stale]


def _own_commit(api: HfApi, repo: str, entry: Entry) -> CommitInfo | None:
    """Gives the commit of an entry, when an earlier try made it and its answer was lost."""
    from huggingface_hub import CommitInfo

    for commit in api.list_repo_commits(repo, revision=entry.push.revision):
        if _mark(entry) in (commit.message or ""):
            return CommitInfo(
                commit_url=f"{api.endpoint}/{repo}/commit/{commit.commit_id}",
                commit_message=commit.title,
                commit_description=commit.message,
                oid=commit.commit_id,
                _endpoint=api.endpoint,
            )
    return None


def _mark(entry: Entry) -> str:
    return f"trainer_core push {entry.id}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Shows no progress bars, which would write into the console from another thread."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    with disable_progress_bars():
        yield
