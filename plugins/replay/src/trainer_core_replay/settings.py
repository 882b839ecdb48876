"""The settings of both plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from trainer_core import Change, Section

Count = Annotated[int, Field(ge=1)]


class DigestsSettings(Section):
    """Records digests of updates in the journal."""

    switch: ClassVar[str | None] = "digest_steps"
    flat: ClassVar[Mapping[str, str]] = {"digest_steps": "steps", "digest_parameter_steps": "parameter_steps"}
    when_changed: ClassVar[Mapping[str, Change]] = dict.fromkeys(("steps", "parameter_steps"), Change.free())

    steps: Count = 10
    """Updates between two that are recorded: their samples, batches, loss and gradient norm."""
    parameter_steps: Count = 100
    """Updates between two of which the parameters are recorded, too: all of their bytes are read. The parameters that a
    run begins with and those after its last update are always recorded."""


class ReplaySettings(Section):
    """Answers `Trainer.replay`."""

    on_by_default: ClassVar[bool] = True
