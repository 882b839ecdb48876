"""Who is still there: ranks tell each other that they live, so that a rank that is lost is named and ends the others.

A collective waits for all ranks, so one rank that is killed, stopped or dead-locked leaves the others in it, or with a
"connection reset" that says nothing. A thread in each rank (none with one process, no work in any step) holds a
connection between it and rank 0 and sends a word every second: phase, step, line of code.

    a connection that ends without a farewell      the process was killed or crashed
    an error that is told                          the rank failed, in user code mostly
    no word for `ddp_heartbeat_timeout` seconds    the process is stopped, or its machine is gone
    a collective that broke or timed out           whoever is in none keeps the others waiting

Rank 0 decides which rank was the first and tells all; without rank 0 each knows that it is that one. A rank that hears
it cuts its own connections, which ends the collective it may wait in, and raises `DistributedError`; one that does not
end so writes why and ends its process. Where a rank failed and lives, all can meet again and save what they have in
common. Time in which a watcher itself did not run counts for nobody's silence.
"""

from __future__ import annotations

import faulthandler
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from trainer_core import verdicts
from trainer_core.errors import DistributedError
from trainer_core.lifeline import Lifeline, connect, leave, listen

BEAT_SECONDS: Final = 1.0
"""Between two words of a rank."""
CONNECT_SECONDS: Final = 10.0
VERDICT_SECONDS: Final = 10.0
"""How long a rank whose collective broke waits to hear whose fault that is."""
DOUBT_SECONDS: Final = 2.0
"""How long the end of a connection may lag behind the error that it causes in a collective."""
_WATCHED_BY: Final = 0


@dataclass(slots=True)
class Peer:
    """What is known of another rank."""

    line: Lifeline
    heard: float
    about: dict[str, Any] = field(default_factory=dict)
    has_left: bool = False
    lost: str = ""


class Watch:
    """This rank's part in it: a thread, from `start` to `close`.

    Attributes:
        verdict: which rank was lost first, and how; "" as long as none is.
        is_together: that rank failed and lives, and all of them can still act together.

    Args:
        rank: this one.
        bound: seconds without a word after which a rank is lost.
        look: gives what this rank does.
        sever: ends the collective that this rank waits in; tells whether it could.
    """

    def __init__(self, rank: int, bound: float, look: Callable[[], dict[str, Any]], sever: Callable[[], bool]) -> None:
        self.rank = rank
        self.bound = bound
        self.verdict = ""
        self.is_together = False
        self._look = look
        self._sever = sever
        self._peers: dict[int, Peer] = {}
        self._strangers: list[Lifeline] = []
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._is_judged = threading.Event()
        self._is_ending = threading.Event()
        self._lock = threading.Lock()
        self._lost = ""
        self._doubt_until: float | None = None
        self._was_cut = False
        self._judged_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="trainer_core.watch", daemon=True)

    def open(self, host: str) -> int:
        """Lets the other ranks connect; for rank 0. Gives the port."""
        self._listener = listen(host)
        self._selector.register(self._listener, selectors.EVENT_READ)
        port: int = self._listener.getsockname()[1]
        return port

    def join(self, host: str, port: int, token: str) -> None:
        """Connects to rank 0; for the others.

        Raises:
            OSError: it cannot be reached.
        """
        line = connect(host, port, CONNECT_SECONDS)
        line.send(rank=self.rank, token=token, **self._look())
        self._add(_WATCHED_BY, line)

    def start(self, token: str) -> None:
        """Begins to watch those who know `token`."""
        self._token = token
        self._thread.start()

    # What the run's own thread asks and says

    def explain(self, problem: str) -> DistributedError:
        """Gives the error for a collective of this rank that broke with `problem`: which rank is the cause."""
        self._is_ending.set()
        self._lost = problem
        if self.rank == _WATCHED_BY:
            self._doubt_until = monotonic() + DOUBT_SECONDS
        else:
            self._say(lost=problem)
        self._is_judged.wait(VERDICT_SECONDS)
        unknown = "launch: a rank was lost, and which one is not known. Look at the output of all ranks."
        return DistributedError(self.verdict or unknown)

    def fail(self, failure: str, *, is_together: bool) -> None:
        """Says that this rank ends the run because of an error of its own, and whether it still acts with the others.

        Gives the others the time to hear of it; this rank hears of one that was lost before.
        """
        self._is_ending.set()
        about = self._look()
        if self.rank == _WATCHED_BY:
            self._judge(verdicts.failed(about, self.rank, failure), is_together=is_together)
        else:
            self._say(**about, failed=failure, is_together=is_together)
            self._is_judged.wait(VERDICT_SECONDS)

    def close(self) -> None:
        """Takes leave and ends the thread and the connections."""
        self._is_ending.set()
        self._say(left=True)
        self._token = ""
        self._waker.send(b".")
        self._thread.join()
        for line in [*(peer.line for peer in self._peers.values()), *self._strangers]:
            line.close()
        self._wake.close()
        self._waker.close()
        if self._listener is not None:
            leave(self._listener)
        self._selector.close()

    # The thread

    def _run(self) -> None:
        beat = before = monotonic()
        while self._token:
            events = self._selector.select(max(0.0, min(beat - monotonic(), BEAT_SECONDS)))
            now = monotonic()
            if now - before > 3 * BEAT_SECONDS:
                self._pardon(now - before)
            before = now
            for key, _ in events:
                if key.fileobj is self._listener:
                    self._admit()
                elif key.data is not None:
                    self._hear(key.data)
            if now >= beat:
                beat = now + BEAT_SECONDS
                self._say(**self._look())
                self._check(now)

    def _hear(self, rank: int) -> None:
        if rank < 0:
            return self._greet(self._strangers[-rank - 1])
        peer = self._peers[rank]
        try:
            for words in peer.line.receive():
                peer.heard = monotonic()
                self._take(rank, peer, words)
        except EOFError:
            self._selector.unregister(peer.line.connection)
            if not peer.has_left:
                peer.has_left = True
                self._judge(verdicts.gone(peer.about, rank))

    def _take(self, rank: int, peer: Peer, words: dict[str, Any]) -> None:
        is_together = bool(words.pop("is_together", False))
        peer.about |= words
        if "verdict" in words:
            self._judge(str(words["verdict"]), is_together=is_together)
        if "failed" in words:
            self._judge(verdicts.failed(peer.about, rank, str(words["failed"])), is_together=is_together)
        if "lost" in words:
            peer.lost = str(words["lost"])
            self._doubt_until = monotonic() + DOUBT_SECONDS
        if "left" in words:
            peer.has_left = True

    def _admit(self) -> None:
        assert self._listener is not None
        line = Lifeline(self._listener.accept()[0])
        self._strangers.append(line)
        self._selector.register(line.connection, selectors.EVENT_READ, -len(self._strangers))

    def _greet(self, line: Lifeline) -> None:
        """Takes a connection for that of the rank it says it is, if it knows the token."""
        try:
            said = list(line.receive())
        except EOFError:
            said = [{}]
        if not said:
            return
        self._selector.unregister(line.connection)
        rank = said[0].get("rank")
        if said[0].get("token") != self._token or not isinstance(rank, int):
            line.close()
            return
        self._add(rank, line)
        line.send(**self._look())
        for words in said:
            self._take(rank, self._peers[rank], words)

    def _add(self, rank: int, line: Lifeline) -> None:
        self._peers[rank] = Peer(line, monotonic())
        self._selector.register(line.connection, selectors.EVENT_READ, rank)

    def _check(self, now: float) -> None:
        """Looks for silent ranks, for the cause of a collective that broke, and whether this rank must be ended."""
        there = {rank: peer for rank, peer in self._peers.items() if not peer.has_left}
        for rank, peer in there.items():
            if now - peer.heard > self.bound:
                self._judge(verdicts.silent(peer.about, rank, now - peer.heard))
        if self._doubt_until is not None and now > self._doubt_until:
            self._doubt_until = None
            self._judge(self._suspect(there, now))
        if self._judged_at is not None and not self._is_ending.is_set():
            is_stuck = not self._was_cut and bool(self._look().get("waits"))
            if now > self._judged_at + (3 * BEAT_SECONDS if is_stuck else self.bound):
                self._end_process()

    def _suspect(self, there: dict[int, Peer], now: float) -> str:
        silent = [rank for rank, peer in there.items() if now - peer.heard > 3 * BEAT_SECONDS]
        if silent:
            return verdicts.silent(there[silent[0]].about, silent[0], now - there[silent[0]].heard)
        known = {rank: (peer.about, peer.lost) for rank, peer in there.items()}
        known[self.rank] = self._look(), self._lost
        problem = next((lost for _, (_, lost) in sorted(known.items()) if lost), "")
        idle = {rank: about for rank, (about, lost) in sorted(known.items()) if not lost and not about.get("waits")}
        if idle and "timed out" in problem.lower():
            rank = min(idle)
            return verdicts.awaited(idle[rank], rank)
        told = "; ".join(f"rank {rank} {verdicts.doing(about)}" for rank, (about, _) in sorted(known.items()))
        return f"launch: a collective broke though all ranks live ({told}), got {problem}. Look at the network."

    def _pardon(self, seconds: float) -> None:
        """Leaves out time in which this process did not run itself."""
        for peer in self._peers.values():
            peer.heard += seconds
        if self._judged_at is not None:
            self._judged_at += seconds

    def _judge(self, verdict: str, *, is_together: bool = False) -> None:
        """Takes the first verdict, tells it, and ends the collective that this rank may wait in."""
        with self._lock:
            if self.verdict:
                return
            self.verdict, self.is_together = verdict, is_together
        self._is_judged.set()
        if self.rank == _WATCHED_BY:
            self._say(verdict=verdict, is_together=is_together)
        if not self._is_ending.is_set():
            self._was_cut, self._judged_at = self._sever(), monotonic()

    def _say(self, **words: Any) -> None:
        for peer in list(self._peers.values()):
            peer.line.send(**words)

    def _end_process(self) -> None:
        """Ends a process whose run does not end: it is in a lock of its own, or its collectives cannot be cut."""
        sys.stderr.write(f"DistributedError: {self.verdict}\nrank {self.rank} does not end by itself, it is here:\n")
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)
