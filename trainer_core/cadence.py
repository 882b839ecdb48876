"""When something recurs: at steps, at the ends of epochs, or never."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cadence:
    """A recurrence, resolved to whole updates.

    Attributes:
        strategy: "steps", "epoch" or anything else for never by counting.
        every: updates between two occurrences; 0 for never.
        delay: nothing before so many updates (strategy "steps") or epochs (strategy "epoch").
        at_the_end: also after the last update, as strategy "steps" promises for evaluations and saves.
    """

    strategy: str
    every: int = 0
    delay: float = 0.0
    at_the_end: bool = True

    def is_due(self, step: int, max_steps: int) -> bool:
        """Tells whether it falls on update `step`; the ends of epochs are not counted here."""
        if self.every == 0 or self.strategy != "steps" or step < self.delay:
            return False
        return step % self.every == 0 or (self.at_the_end and step >= max_steps)

    def reason(self, step: int, max_steps: int) -> str:
        """Says why it falls on update `step`."""
        if step % self.every and step >= max_steps:
            return f"the last update, {step}"
        return "every update" if self.every == 1 else f"every {self.every} updates"

    def steps(self, max_steps: int, updates_per_epoch: int | None, num_epochs: float | None = None) -> list[int] | None:
        """Gives the updates on which it falls; None where the length of an epoch is unknown and matters.

        Args:
            max_steps: updates in all.
            updates_per_epoch: the last, short one included.
            num_epochs: epochs trained at the end, where a `delay` may fall into a last epoch that is cut short.
        """
        if self.strategy == "steps" and self.every:
            steps = list(range(self.every, max_steps + 1, self.every))
            if self.at_the_end and max_steps % self.every:
                steps.append(max_steps)
            return [step for step in steps if step >= self.delay]
        if self.strategy != "epoch":
            return []
        if not updates_per_epoch:
            return None
        whole = max_steps // updates_per_epoch
        steps = [epoch * updates_per_epoch for epoch in range(1, whole + 1) if epoch >= self.delay]
        if max_steps % updates_per_epoch and (num_epochs or max_steps / updates_per_epoch) >= self.delay:
            steps.append(max_steps)
        return steps


def interval(value: float | None, max_steps: int) -> int:
    """Gives a number of updates for a setting that is a count, or a share of `max_steps` when below 1 (rounded up)."""
    if not value:
        return 0
    return max(1, math.ceil(round(max_steps * value, 9))) if value < 1 else int(value)  # 70 * 0.1 is a hair above 7
