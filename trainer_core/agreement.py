"""How ranks come to equal signals before the table is read.

Causes that every rank knows (counters, gathered metrics) need nothing. What only one rank knows (an operating-system
signal, the clock, a plugin that failed there) waits here until all ranks exchange it at one boundary: at every boundary
but those between quick updates, of which every tenth is one, and every one where an update takes a second.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

import torch

from trainer_core.errors import DistributedError
from trainer_core.phases import Phase

if TYPE_CHECKING:
    from trainer_core.loop import Loop
    from trainer_core.state import Request

EVERY: Final = 10
"""Updates, or batches of an evaluation, between two exchanges at most."""
SECONDS: Final = 1.0
"""Between two exchanges, where updates are slow; no less than one update."""


class Agreement:
    """What this rank has to tell the others.

    Attributes:
        requests: raised on this rank alone so far.
        wants_row: somebody on this rank asks for a row of the training; all ranks log one together.
        is_failing: all ranks end at this boundary, because a plugin failed on one of them.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.ranks = loop.ranks
        self.requests: list[Request] = []
        self.wants_row = False
        self.is_failing = False
        self.every = EVERY
        self.last = 0, perf_counter()
        self.look()

    def look(self) -> None:
        """Finds out whether a plugin decides on one rank alone, so that every boundary has an exchange."""
        self.is_always = any(hasattr(member.plugin, "decides_alone") for member in self.loop.bus.members.values())

    def reach(self) -> None:
        """Makes what one rank knows known to all, if this boundary is one for that.

        Raises:
            DistributedError: a plugin failed on another rank.
        """
        loop, step = self.loop, self.loop.state.global_step
        is_step = loop.phase is Phase.STEP
        if is_step and step % self.every and not self.is_always:
            return
        news = bool(self.requests or loop.bus.failure)
        has_news, slowest, wants_row = self._worst(float(news), self._seconds_an_update(step), float(self.wants_row))
        if is_step and slowest:
            self.every = min(EVERY, max(1, int(SECONDS / slowest)))
        if has_news:
            self._exchange()
        if wants_row:
            self.wants_row = False
            loop.trainer.log_training_row()
        self.last = step, perf_counter()

    def reach_in_evaluation(self, batch: int, common: int) -> None:
        """The same after batch `batch` of an evaluation, of which all ranks have `common`."""
        if self.ranks.world_size > 1 and batch % EVERY == 0 and batch <= common:
            (has_news,) = self._worst(float(bool(self.requests)))
            if has_news:
                self._exchange()

    def _seconds_an_update(self, step: int) -> float:
        before, at = self.last
        return (perf_counter() - at) / (step - before) if step > before else 0.0

    def _worst(self, *values: float) -> list[float]:
        worst: list[float] = self.ranks.max(torch.tensor(values, device=self.ranks.device)).tolist()
        return worst

    def _exchange(self) -> None:
        failure = self.loop.bus.failure
        mine, self.requests = self.requests, []  # a signal that comes from here on is told the next time
        told = self.ranks.gather_objects((mine, "" if failure is None else repr(failure)))
        of_ranks = [requests for requests, _ in told]
        for rank, requests in enumerate(of_ranks):
            for request in requests:
                is_common = all(request in others for others in of_ranks)
                by = request.by if is_common else f"{request.by} (rank {rank})"
                self.loop.request(request.signal, by=by, why=request.why, interrupt=request.interrupt)
        failed = [(rank, text) for rank, (_, text) in enumerate(told) if text]
        if failed:
            self.is_failing = True
            rank, text = failed[0]
            raise failure or DistributedError(f"rank {rank}: a plugin failed there, got {text}. Look at its output.")
