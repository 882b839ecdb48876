"""`python -m trainer_core push OUTPUT_DIR`: pushes what a run left in its outbox."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from trainer_core import PluginError

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from trainer_core_hub_push.entries import Entry
    from trainer_core_hub_push.outbox import Outbox

OWNER_SECONDS: Final = 10.0
"""How long it waits for an outbox that is in use: children of a run that was killed keep it so until they notice."""
_LOOK_SECONDS: Final = 0.2
_UNUSABLE: Final = "output_dir: cannot be used", "Let this user read and write it."


def push(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Pushes what a run left in its outbox, with the token of HF_TOKEN or the login."""
    parser.add_argument("output_dir", type=Path, help="folder of the run")
    parser.add_argument("--retries", type=_count, default=6, help="tries after a passing failure (default: 6)")
    parser.add_argument(
        "--backoff", type=_seconds, default=1.0, help="seconds before the first of them (default: 1); doubled each time"
    )
    return _push


def _push(given: argparse.Namespace) -> int:
    from trainer_core_hub_push.outbox import Outbox
    from trainer_core_hub_push.repository import malformed

    folder: Path = given.output_dir
    outbox = Outbox(folder)
    if not folder.is_dir():
        return _refused(given, f"output_dir: is no folder, got {str(folder)!r}. Name that of a run.")
    if not _entries(outbox):
        print(f"{folder}: nothing is left to push.")
        return 0
    secret = _secret()
    if secret is None:
        return _refused(given, "there is no token. Set the variable HF_TOKEN, or log in with `hf auth login`.")
    if problem := malformed(secret):
        return _refused(given, problem)
    if not _is_free(outbox):
        return _refused(given, f"{outbox.folder}: is in use by process {outbox.owner}. Let it finish, or end it.")
    return _upload(given, outbox)


def _upload(given: argparse.Namespace, outbox: Outbox) -> int:
    from trainer_core_hub_push.client import hub_api
    from trainer_core_hub_push.patience import Patience
    from trainer_core_hub_push.uploading import Uploader

    patience = Patience(given.retries, given.backoff, max_backoff_seconds=60.0)
    uploader = Uploader(outbox, lambda entry: hub_api(), patience, _say)
    uploader.begin()
    uploader.wait(None)
    left = _entries(outbox)
    if left:
        return _refused(given, f"{len(left)} left in {outbox.folder}: {uploader.account.last_error}. Run it again.")
    return 0


def _say(entry: Entry, commit: CommitInfo) -> None:
    print(f"pushed {entry.push.message!r} to {commit.commit_url}", flush=True)


def _secret() -> str | None:
    from trainer_core_hub_push.client import hub_api
    from trainer_core_hub_push.repository import secret_of

    with _told("the token: cannot be read", "Let this user read it, or set the variable HF_TOKEN."):
        return secret_of(hub_api())


def _entries(outbox: Outbox) -> list[Entry]:
    with _told(*_UNUSABLE):
        return outbox.entries()


def _is_free(outbox: Outbox) -> bool:
    """Waits until no other process pushes this outbox; tells whether that is so."""
    deadline = monotonic() + OWNER_SECONDS
    while True:
        with _told(*_UNUSABLE), outbox.lock() as is_ours:
            if is_ours or monotonic() >= deadline:
                return is_ours
        sleep(_LOOK_SECONDS)


@contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Says of an error of the system what could not be done."""
    try:
        yield
    except OSError as error:
        raise PluginError(f"{what}, got {error}. {remedy}") from error


def _refused(given: argparse.Namespace, problem: str) -> int:
    print(f"{given.prog}: {problem}", file=sys.stderr)
    return 1


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds
