"""The order of a run, as data.

A run is a walk over six phases. While a phase works, signals are raised: by the loop itself (an evaluation is
due, the last update is done), by plugins and callbacks, by the operating system. When the phase is done,
`next_phase` reads the row of `EXITS` that belongs to it from left to right; the first signal that is raised
and has an exit in that row decides. READY is always raised and stands last.

Theory of operation
-------------------
* Evaluation comes before saving (a checkpoint should know its score), and saving before stopping (nothing
  learnt is lost). That order is the order of the columns and stands nowhere else.
* A phase lowers its own signal when it is entered: EVAL lowers EVAL, SAVE lowers SAVE, EPOCH lowers EPOCH_END.
  STOP is lowered by nobody. A signal without an exit in a row stays raised for a later phase.
* EPOCH_END means "no epoch is open, or the open one is used up". INIT raises it, so that an evaluation before
  training leads to EPOCH; the last update of an epoch raises it; and EPOCH itself raises it when it has closed
  an epoch, so that requests made at the end of an epoch are served before the next one opens.
* A run stops only between epochs: STOP leads through EPOCH, which closes the open epoch (where there is one) and
  goes on to STOP.
* Without STEP and EPOCH the graph has no cycle, so a walk cannot evaluate and save for ever; the loop drops a
  second request for an evaluation or a save of the same update.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Final

from trainer_core.errors import TransitionError


class Phase(Enum):
    """What a run is doing; exactly one at a time."""

    INIT = "init"
    EPOCH = "epoch"
    STEP = "step"
    EVAL = "eval"
    SAVE = "save"
    STOP = "stop"


class Signal(Enum):
    """What is asked of a run, in the order in which it is served."""

    EVAL = "eval"
    SAVE = "save"
    STOP = "stop"
    EPOCH_END = "epoch_end"
    READY = "ready"


EXITS: Final[Mapping[Phase, Mapping[Signal, Phase]]] = {
    Phase.INIT: {
        Signal.EVAL: Phase.EVAL,
        Signal.STOP: Phase.EPOCH,
        Signal.EPOCH_END: Phase.EPOCH,
        Signal.READY: Phase.EPOCH,
    },
    Phase.EPOCH: {
        Signal.EVAL: Phase.EVAL,
        Signal.SAVE: Phase.SAVE,
        Signal.STOP: Phase.STOP,
        Signal.EPOCH_END: Phase.EPOCH,
        Signal.READY: Phase.STEP,
    },
    Phase.STEP: {
        Signal.EVAL: Phase.EVAL,
        Signal.SAVE: Phase.SAVE,
        Signal.STOP: Phase.EPOCH,
        Signal.EPOCH_END: Phase.EPOCH,
        Signal.READY: Phase.STEP,
    },
    Phase.EVAL: {
        Signal.SAVE: Phase.SAVE,
        Signal.STOP: Phase.EPOCH,
        Signal.EPOCH_END: Phase.EPOCH,
        Signal.READY: Phase.STEP,
    },
    Phase.SAVE: {
        Signal.STOP: Phase.EPOCH,
        Signal.EPOCH_END: Phase.EPOCH,
        Signal.READY: Phase.STEP,
    },
    Phase.STOP: {},
}

LOWERED_ON_ENTRY: Final[Mapping[Phase, Signal]] = {
    Phase.EVAL: Signal.EVAL,
    Phase.SAVE: Signal.SAVE,
    Phase.EPOCH: Signal.EPOCH_END,
}
"""The signal that a phase serves, and so takes back when it is entered."""

AT_WORK: Final = frozenset({Phase.EPOCH, Phase.STEP, Phase.EVAL})
"""Phases in which an error leaves the last step boundary to be saved, on several ranks too."""


def next_phase(phase: Phase, raised: Collection[Signal]) -> tuple[Phase, Signal]:
    """Gives the phase that follows `phase` and the signal that decided it.

    Args:
        phase: the phase that is done.
        raised: the raised signals; READY is always among them and need not be named.

    Raises:
        TransitionError: `phase` is final.
    """
    for signal, target in EXITS[phase].items():
        if signal in raised or signal is Signal.READY:
            return target, signal
    raise TransitionError(f"phase {phase.name}: has no exit, it is the end of a run. Start a new run.")


def check_exit(phase: Phase, target: Phase) -> None:
    """Raises TransitionError unless the table lets `phase` be followed by `target`."""
    if target not in EXITS[phase].values():
        allowed = sorted({exit_.name for exit_ in EXITS[phase].values()}) or ["none"]
        raise TransitionError(
            f"phase {phase.name}: cannot be followed by {target.name}. The table allows {', '.join(allowed)}."
        )


def exits_table() -> str:
    """Gives the table as Markdown: one row a phase, one column a signal, in the order in which they are served."""
    rows = ["| phase | " + " | ".join(signal.name for signal in Signal) + " |", "|---" * (len(Signal) + 1) + "|"]
    for phase, exits in EXITS.items():
        cells = [exits[signal].name if signal in exits else "" for signal in Signal]
        if not exits:
            cells[0] = "*final*"
        rows.append(f"| {phase.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def exits_diagram() -> str:
    """Gives the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> INIT"]
    for phase, exits in EXITS.items():
        labels: dict[Phase, list[str]] = {}
        for signal, target in exits.items():
            labels.setdefault(target, []).append(signal.name)
        lines += [f"    {phase.name} --> {target.name}: {', '.join(names)}" for target, names in labels.items()]
        if not exits:
            lines.append(f"    {phase.name} --> [*]")
    return "\n".join(lines)
