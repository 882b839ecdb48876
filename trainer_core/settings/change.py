"""What another value of a setting means for a run that is resumed; declared beside the fields, in `when_changed`.

    free      no effect on what is learnt: progress, logging, names of outputs
    said      holds from here on; each such field is told in one line
    refused   the rest would be that of another run; the run does not go on

A field that is not declared is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

Kind = Literal["free", "said", "refused"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs that are compared: that of the checkpoint, or the one that resumes it.

    Attributes:
        values: of all fields of the class that the field is in, as JSON has them.
        max_steps: updates that the run was to do, or will do.
        counters: of the checkpoint; the same for both sides.
    """

    values: Mapping[str, Any]
    max_steps: int
    counters: Mapping[str, Any]

    @property
    def done(self) -> int:
        """Updates that the checkpoint has behind it."""
        return int(self.counters["global_step"])


Note = str | Callable[[Side, Side], str]
Meaning = Callable[[Side], object]


@dataclass(frozen=True, slots=True)
class Change:
    """What a changed field means.

    Attributes:
        kind: free, said or refused.
        note: for the reader, a clause without a full stop: what the change does, or why it is refused.
        when: asked with both sides; a refused change of which it is false is said.
        meaning: what a value comes to; two values of one meaning are no change. None for the value itself.
    """

    kind: Kind
    note: Note = ""
    when: Callable[[Side, Side], bool] | None = None
    meaning: Meaning | None = None

    @classmethod
    def free(cls) -> Self:
        """Gives what has no effect on what is learnt."""
        return cls("free")

    @classmethod
    def said(cls, note: Note = "", *, meaning: Meaning | None = None) -> Self:
        """Gives what holds from here on, and what it does."""
        return cls("said", note, meaning=meaning)

    @classmethod
    def refused(
        cls, note: Note, *, when: Callable[[Side, Side], bool] | None = None, meaning: Meaning | None = None
    ) -> Self:
        """Gives what would make the rest of the run another one's, and why; `when` says in which case."""
        return cls("refused", note, when, meaning)

    def kind_for(self, before: Side, now: Side) -> Kind:
        """Gives what the change means between two runs."""
        return "said" if self.when is not None and not self.when(before, now) else self.kind

    def told(self, before: Side, now: Side) -> str:
        """Gives the note for two runs."""
        return self.note if isinstance(self.note, str) else self.note(before, now)
