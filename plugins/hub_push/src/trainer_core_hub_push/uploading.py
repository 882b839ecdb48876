"""Pushes what is in an outbox, in a thread of its own, in order, again and again where the Hub fails.

    begin      a thread is there while there is something to push, and no longer
    replace    an entry that a newer one replaces is taken out instead
    retry      a passing failure is waited out, twice as long each time and as long as the Hub asks
    pause      after so many of them in a row, or when the Hub refuses the token or asks for too long a wait, until the
               next `begin`
    set aside  an entry that is refused itself lets the others go on; it is tried again after the next `begin`

Whatever is not pushed stays in the outbox. Others wait for it in `wait` and for a `Future` alone.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Final

from trainer_core import PluginError
from trainer_core_hub_push import repository
from trainer_core_hub_push.client import in_words, is_transient, retry_after, status_of
from trainer_core_hub_push.patience import Patience, duration, too_long

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

    from trainer_core_hub_push.entries import Entry
    from trainer_core_hub_push.outbox import Outbox

logger = logging.getLogger("trainer_core.hub_push")

_OF_THE_TOKEN: Final = (401, 403)
_LOCK_SECONDS: Final = 0.2
"""Between two looks at an outbox that another process uploads."""


@dataclass(slots=True)
class Account:
    """What became of pushes.

    Attributes:
        done: commits that arrived.
        replaced: pushes that a newer one replaced.
        last_error: why the last try failed; empty when it went well and none was refused.
        last_url: of the last commit.
    """

    done: int = 0
    replaced: int = 0
    last_error: str = ""
    last_url: str = ""


@dataclass(slots=True)
class _State:
    """What the thread and its owner share, under one lock."""

    thread: threading.Thread | None = None
    is_stopping: bool = False
    is_paused: bool = False
    failures: int = 0
    not_before: float = 0.0
    set_aside: set[str] = field(default_factory=set)


class Uploader:
    """Pushes the entries of one outbox.

    Args:
        outbox: whose entries.
        api_of: gives the client to push an entry with; asked each time, so that the token is read when it is used.
        patience: with failures.
        say: hears of each push that arrived.
    """

    def __init__(
        self,
        outbox: Outbox,
        api_of: Callable[[Entry], HfApi],
        patience: Patience,
        say: Callable[[Entry, CommitInfo], None] | None = None,
    ) -> None:
        self.outbox = outbox
        self.api_of = api_of
        self.patience = patience
        self.say = say
        self.account = Account()
        self.said_public: set[str] = set()
        self._changed = threading.Condition()
        self._state = _State()
        self._futures: dict[str, list[Future[CommitInfo | None]]] = {}
        self._commits: dict[str, CommitInfo] = {}
        self._repositories: dict[tuple[str | None, str, str | None], str] = {}
        self._random = random.Random()  # its own: the run's draws stay what they are

    def begin(self) -> None:
        """Sees to it that what is in the outbox is being pushed; gives at once."""
        with self._changed:
            state = self._state
            state.is_stopping = False
            state.set_aside.clear()
            if state.thread is None or state.is_paused:
                state.is_paused, state.failures, state.not_before = False, 0, 0.0
            if state.thread is None:
                thread = threading.Thread(target=self._run, name="trainer_core.hub_push", daemon=True)
                thread.start()  # fails where the system has no more
                state.thread = thread
            self._changed.notify_all()

    def future_of(self, entry: Entry) -> Future[CommitInfo | None]:
        """Gives what can be waited for: the commit of an entry, or of the newer one that replaced it.

        It is None where another process pushed the entry. It raises PluginError where the push was given up.
        """
        future: Future[CommitInfo | None] = Future()
        with self._changed:
            if entry.id in self._commits:
                future.set_result(self._commits[entry.id])
            else:
                self._futures.setdefault(entry.id, []).append(future)
        return future

    def wait(self, seconds: float | None) -> bool:
        """Waits, at most so long or without end, until there is nothing more to do; tells whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state.thread is None, seconds)

    def stop(self) -> None:
        """Begins no further push; the one under way goes on to its end."""
        with self._changed:
            self._state.is_stopping = True
            self._changed.notify_all()

    @property
    def is_active(self) -> bool:
        """Whether the thread is there."""
        return self._state.thread is not None

    # In the thread

    def _run(self) -> None:
        try:
            while not self._work():
                pass
        except Exception as error:  # a disk that fails: the run goes on, the next push tries again
            self.account.last_error = in_words(error)
            logger.warning("pushing: stopped, %s. The next push goes on.", self.account.last_error)
            with self._changed:
                self._end()

    def _work(self) -> bool:
        """Pushes entries while this process may; tells whether the thread is to end, which is then settled."""
        with self.outbox.lock() as is_ours:
            if is_ours:
                self.outbox.tidy(staging=False)
                while (entry := self._next()) is not None:
                    self._push(entry)
        with self._changed:
            self._settle_vanished()
            if self._turn() is None:
                self._end()
                return True
            if not is_ours:
                self.account.last_error = f"process {self.outbox.owner} is pushing this outbox"
                self._changed.wait(_LOCK_SECONDS)
            return False

    def _next(self) -> Entry | None:
        """Gives the entry whose turn it is, when the time has come; None when there is none."""
        with self._changed:
            while (entry := self._turn()) is not None:
                seconds = self._state.not_before - monotonic()
                if seconds <= 0:
                    return entry
                self._changed.wait(seconds)
            return None

    def _turn(self) -> Entry | None:
        """Gives the oldest entry that is to be pushed, and takes out those that newer ones replace, paused or not."""
        state, turn = self._state, None
        entries = self.outbox.entries()
        newest = {entry.push.target: entry for entry in entries if entry.push.key}
        for entry in entries:
            newer = newest.get(entry.push.target, entry)
            if newer is not entry:
                self._replace(entry, newer)
            elif turn is None and entry.id not in state.set_aside:
                turn = entry
        return None if state.is_stopping or state.is_paused else turn

    def _replace(self, entry: Entry, newer: Entry) -> None:
        self.outbox.remove(entry)
        self.account.replaced += 1
        logger.info("%r: is not pushed, %r replaces it.", entry.push.message, newer.push.message)
        self._futures.setdefault(newer.id, []).extend(self._futures.pop(entry.id, []))

    def _push(self, entry: Entry) -> None:
        api: HfApi | None = None
        try:
            api = self.api_of(entry)
            commit = self._send(api, entry)
            self.outbox.remove(entry)
        except Exception as error:
            secret = None if api is None else repository.secret_of(api)
            self._failed(entry, error, in_words(error, secret))
            return
        self.account.done += 1
        self.account.last_url = commit.commit_url
        if not self._state.set_aside:  # why these were refused is told at the end
            self.account.last_error = ""
        logger.info("%r: is pushed to %s.", entry.push.message, commit.commit_url)
        if self.say is not None:
            self.say(entry, commit)
        with self._changed:
            self._commits[entry.id] = commit
            self._state.failures, self._state.not_before = 0, 0.0
            futures = self._futures.pop(entry.id, [])
        for future in futures:
            future.set_result(commit)

    def _send(self, api: HfApi, entry: Entry) -> CommitInfo:
        place = repository.secret_of(api), entry.push.repo, entry.push.revision  # whose token it is names the owner
        if place not in self._repositories:
            self._repositories[place] = repository.prepare(api, entry.push, self.said_public)
        return repository.send(api, self._repositories[place], entry)

    def _failed(self, entry: Entry, error: Exception, told: str) -> None:
        """Waits, sets the entry aside, or pauses."""
        message, folder = entry.push.message, self.outbox.folder
        asked = retry_after(error) if is_transient(error) else None
        if too_much := too_long(asked):
            told = f"{told}; {too_much}"
        self.account.last_error = told
        with self._changed:
            state = self._state
            if not is_transient(error):
                state.is_paused = status_of(error) in _OF_THE_TOKEN
                state.set_aside.add(entry.id)
                logger.warning("%r: was refused, %s. It stays in %s.", message, told, folder)
                return
            state.failures += 1
            if too_much:
                state.is_paused = True
                logger.warning("%r: was not pushed, %s. It stays in %s.", message, told, folder)
                return
            if state.failures > self.patience.retries:
                state.is_paused = True
                tries = f"{state.failures} tries"
                logger.warning("%r: was not pushed in %s, %s. It stays in %s.", message, tries, told, folder)
                return
            seconds = self.patience.seconds(state.failures, self._random.random(), asked)
            state.not_before = monotonic() + seconds
        logger.warning("%r: was not pushed, %s. The next try is in %s.", message, told, duration(seconds))

    # Under the lock

    def _end(self) -> None:
        """Notes that the thread ends, and tells those who wait that their pushes did not arrive."""
        self._state.thread = None
        for entry_id in list(self._futures):
            for future in self._futures.pop(entry_id):
                future.set_exception(PluginError(f"push_to_hub: did not arrive, {self._why()} {self.remedy()}"))
        self._changed.notify_all()

    def _why(self) -> str:
        return f"got {self.account.last_error}." if self.account.last_error else "the run ended before."

    def remedy(self) -> str:
        """Says how what is left is pushed later."""
        return f"It is kept, `python -m trainer_core push {self.outbox.folder.parent}` pushes it."

    def _settle_vanished(self) -> None:
        """Settles what another process pushed."""
        there = {entry.id for entry in self.outbox.entries()}
        for entry_id in [one for one in self._futures if one not in there]:
            for future in self._futures.pop(entry_id):
                future.set_result(None)
