"""How fast a run goes, and when it will be done.

The time left is what the remaining updates take at the measured pace, plus the evaluations and saves that the plan
still holds, each at the mean of those measured. A resumed run measures from where it went on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final, NamedTuple

from trainer_core.phases import Phase

SPACING_SECONDS: Final = 1.0
"""Between two observations that are kept."""

WINDOW: Final = 30
"""Observations that are kept: the pace is that of the last half minute, where that saw enough updates."""

ENOUGH_UPDATES: Final = 10
"""A window with fewer updates tells less than the whole run."""


class TimeLeft(NamedTuple):
    """Seconds until the run is done; `is_least` when something that was never measured is still to come."""

    seconds: float
    is_least: bool


@dataclass(frozen=True, slots=True)
class _Observation:
    step: int
    samples: int
    seconds: float


class Pace:
    """A stopwatch for the phases of one run.

    Args:
        step: updates done before it.
        samples: samples trained on before it.
        max_steps: updates in all.
        evaluations, saves: the updates after which the plan has one, in order.
        clock: gives seconds.
    """

    def __init__(
        self,
        *,
        step: int = 0,
        samples: int = 0,
        max_steps: int = 0,
        evaluations: Sequence[int] = (),
        saves: Sequence[int] = (),
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.max_steps = max_steps
        self.planned = {Phase.EVAL: evaluations, Phase.SAVE: saves}
        self.clock = clock
        self.began = self.entered = clock()
        self.phase = Phase.INIT
        self._training_seconds = 0.0
        self._measured: dict[Phase, list[float]] = {Phase.EVAL: [0.0, 0], Phase.SAVE: [0.0, 0]}
        self._first = _Observation(step, samples, 0.0)
        self._window: deque[_Observation] = deque([self._first], maxlen=WINDOW)
        self._observed = self.began

    def enter(self, phase: Phase) -> None:
        """Stops the watch of the phase that was and starts that of `phase`."""
        now = self.clock()
        seconds, self.entered = now - self.entered, now
        if self.phase in self._measured:
            measured = self._measured[self.phase]
            measured[0] += seconds
            measured[1] += 1
        elif self.phase in _TRAINING:
            self._training_seconds += seconds
        self.phase = phase

    def observe(self, step: int, samples: int) -> None:
        """Remembers how far the run is; call it from one thread, as often as you like."""
        now = self.clock()
        if now - self._observed >= SPACING_SECONDS:
            self._observed = now
            self._window.append(_Observation(step, samples, self.training_seconds))

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.began

    @property
    def seconds_in_phase(self) -> float:
        """Seconds since the present phase was entered."""
        return self.clock() - self.entered

    @property
    def training_seconds(self) -> float:
        """Seconds of updates alone, so far."""
        return self._training_seconds + (self.seconds_in_phase if self.phase in _TRAINING else 0.0)

    def seconds_per_step(self, step: int) -> float | None:
        """Gives what an update takes, None before the first is done."""
        since = self._since(step)
        updates = step - since.step
        return (self.training_seconds - since.seconds) / updates if updates > 0 else None

    def samples_per_second(self, step: int, samples: int) -> float | None:
        """Gives samples trained on a second of training, None before the first update is done."""
        since = self._since(step)
        seconds = self.training_seconds - since.seconds
        return (samples - since.samples) / seconds if step > since.step and seconds > 0 else None

    def time_left(self, step: int) -> TimeLeft | None:
        """Gives the time until the plan is done, None while nothing is measured."""
        per_step = self.seconds_per_step(step)
        if per_step is None:
            return None
        seconds, is_least = max(self.max_steps - step, 0) * per_step, False
        for phase, (total, count) in self._measured.items():
            remaining = self._remaining(phase, step)
            if phase is self.phase:
                seconds += max(total / count - self.seconds_in_phase, 0.0) if count else 0.0
                is_least |= not count
            seconds += remaining * total / count if count else 0.0
            is_least |= remaining > 0 and not count
        return TimeLeft(seconds, is_least)

    def _since(self, step: int) -> _Observation:
        oldest = self._window[0]
        return oldest if step - oldest.step >= ENOUGH_UPDATES else self._first

    def _remaining(self, phase: Phase, step: int) -> int:
        """Counts what is planned after `step`; while it evaluates, a save after this very update is still to come."""
        planned = self.planned[phase]
        is_ahead = phase is Phase.SAVE and self.phase is Phase.EVAL
        return len(planned) - (bisect_left(planned, step) if is_ahead else bisect_right(planned, step))


_TRAINING: Final = (Phase.EPOCH, Phase.STEP)
