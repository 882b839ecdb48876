"""A run as it stands at one moment, for whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from trainer_core.console.pace import Pace, TimeLeft
from trainer_core.console.wording import Part, clock, parts_of, rate
from trainer_core.phases import Phase, Signal

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

WORDS: Final[Mapping[Phase, str]] = {
    Phase.INIT: "preparing",
    Phase.EPOCH: "training",
    Phase.STEP: "training",
    Phase.EVAL: "evaluating",
    Phase.SAVE: "saving",
    Phase.STOP: "finishing",
}
"""What a run does in each phase."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run is.

    Attributes:
        phase: what it does.
        seconds_in_phase: since it began to do that.
        step, max_steps: updates done and planned.
        epoch, num_epochs: epochs trained, with a fraction, and planned (0 when unknown).
        elapsed: seconds since the run began.
        left: time until it is done; None when that is not known yet.
        samples_per_second: of training alone; None before the first update.
        logs: the newest row of training.
        stopping: who asked the run to stop; empty while nobody did.
    """

    phase: Phase
    seconds_in_phase: float
    step: int
    max_steps: int
    epoch: float
    num_epochs: int
    elapsed: float
    left: TimeLeft | None = None
    samples_per_second: float | None = None
    logs: Mapping[str, Any] = field(default_factory=dict)
    stopping: str = ""

    @property
    def activity(self) -> str:
        """What the run does, with the time that an evaluation or a save has taken so far."""
        word = WORDS[self.phase]
        return f"{word} {clock(self.seconds_in_phase)}" if self.phase in (Phase.EVAL, Phase.SAVE) else word

    @property
    def progress(self) -> float:
        """Share of the updates that are done."""
        return min(self.step / self.max_steps, 1.0) if self.max_steps else 0.0

    @property
    def steps(self) -> str:
        """Updates done and planned."""
        return f"{self.step:,}/{self.max_steps:,}"

    @property
    def epochs(self) -> str:
        """Epochs done and planned."""
        return f"epoch {self.epoch:.2f}" + (f"/{self.num_epochs}" if self.num_epochs else "")

    @property
    def elapsed_clock(self) -> str:
        """The time since the run began."""
        return clock(self.elapsed)

    @property
    def time_left(self) -> str:
        """The time until the run is done, with a plus when something unmeasured is still to come."""
        if self.left is None:
            return ""
        return f"{clock(self.left.seconds)}{'+' if self.left.is_least else ''} left"

    @property
    def rate(self) -> str:
        """Samples a second."""
        return "" if self.samples_per_second is None else f"{rate(self.samples_per_second)} samples/s"

    @property
    def parts(self) -> list[Part]:
        """The values of the newest row of training."""
        return parts_of(self.logs)


def moment_of(trainer: Trainer, pace: Pace, logs: Mapping[str, Any] | None = None) -> Moment:
    """Gives the run as it stands now; may be called from any thread."""
    state, step = trainer.state, trainer.state.global_step
    request = trainer.running.loop.raised.get(Signal.STOP) if trainer.running is not None else None
    is_cut_short = request is not None and not request.is_planned
    return Moment(
        phase=pace.phase,
        seconds_in_phase=pace.seconds_in_phase,
        step=step,
        max_steps=state.max_steps,
        epoch=state.epoch,
        num_epochs=state.num_train_epochs,
        elapsed=pace.elapsed,
        left=None if is_cut_short else pace.time_left(step),
        samples_per_second=pace.samples_per_second(step, state.num_samples_seen),
        logs=logs or {},
        stopping=request.by if is_cut_short and request is not None else "",
    )
