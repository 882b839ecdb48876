"""A model of the loop: what a start of the scripted run does, given its script and the checkpoint where it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.crash.scripted import EVAL_STEPS, LAST, SAVE_STEPS, Script


@dataclass(frozen=True)
class Checkpoint:
    """What the model knows of a checkpoint.

    Attributes:
        step: updates done.
        evaluated: the steps of the evaluations so far.
        is_due: an evaluation of this step is yet to be made.
    """

    step: int = 0
    evaluated: tuple[int, ...] = ()
    is_due: bool = False


class _EndError(Exception):
    """A script ends the start here."""


@dataclass
class Start:
    """A start from a checkpoint.

    Attributes:
        begin: the checkpoint.
        script: what it does beside its schedule.
        trace: what it tells, without digests.
        saved: the checkpoints that it writes, in their order.
        outcome: "killed" where it tells none.
    """

    begin: Checkpoint
    script: Script
    trace: list[str] = field(default_factory=list)
    saved: list[Checkpoint] = field(default_factory=list)
    outcome: str = ""

    def __post_init__(self) -> None:
        self.step, self.evaluated, self.asked = self.begin.step, self.begin.evaluated, set()
        self.trace.append(f"begins {self.step}")
        try:
            self.outcome = self._walk()
        except _EndError as end:
            self.outcome = str(end)
            if self.outcome == "failed" and self.step > self.begin.step:
                self._save(tells=False)

    @property
    def end(self) -> Checkpoint:
        """The checkpoint from which the next start begins."""
        return self.saved[-1] if self.saved else self.begin

    def _walk(self) -> str:
        if self.begin.is_due:
            self._evaluate()
        while not self.asked & {"stop", "interrupt"}:
            if self.step == LAST:
                return "completed"
            self._act("on_step_begin", self.step + 1)
            self.step += 1
            self.trace.append(f"step {self.step}")
            scheduled = {"evaluation": self.step % EVAL_STEPS == 0, "save": self.step % SAVE_STEPS == 0}
            self.asked |= {name for name, is_due in scheduled.items() if is_due}
            self._act("on_step_end")
            self._boundary()
        if "interrupt" in self.asked:
            return "interrupted"
        return "completed" if self.step == LAST else "stopped"

    def _boundary(self) -> None:
        if self.step == LAST:
            self.asked |= {"stop"}
        if "evaluation" in self.asked and "interrupt" not in self.asked:
            self._evaluate()
        if self.asked & {"save", "stop", "interrupt"}:
            self._save()

    def _evaluate(self) -> None:
        self.asked.discard("evaluation")
        self.evaluated += (self.step,)
        self.trace.append(f"evaluates {self.step}")
        self._act("on_evaluate")
        self.asked.discard("evaluation")  # it is made

    def _save(self, *, tells: bool = True) -> None:
        self.asked.discard("save")
        if self.end.step != self.step:
            self.saved.append(Checkpoint(self.step, self.evaluated, "evaluation" in self.asked))
            self.trace.append(f"saves {self.step}")
            if tells:
                self._act("on_save")

    def _act(self, hook: str, step: int | None = None) -> None:
        for act, *where in self.script:
            if where == [hook, self.step if step is None else step]:
                if act in ("fail", "kill"):
                    raise _EndError({"fail": "failed", "kill": "killed"}[act])
                self.asked.add(MEANINGS[act])


MEANINGS = {
    "ask for an evaluation": "evaluation",
    "ask for a save": "save",
    "ask for a stop": "stop",
    "send SIGTERM": "interrupt",
}


def without_digests(trace: Sequence[str]) -> list[str]:
    """Gives what was told without the bits."""
    return [" ".join(line.split()[:2]) for line in trace]
