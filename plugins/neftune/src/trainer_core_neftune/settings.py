"""The settings of the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from trainer_core import Change, Section


def _some_noise(alpha: float) -> float:
    if alpha <= 0:
        raise ValueError("must be above 0. Use None for no noise; the paper takes 5 to 15")
    return alpha


class NeftuneSettings(Section):
    """How much noise the input embeddings get while training."""

    flat: ClassVar[Mapping[str, str]] = {"neftune_noise_alpha": "noise_alpha"}
    switch: ClassVar[str | None] = "neftune_noise_alpha"
    when_changed: ClassVar[Mapping[str, Change]] = {
        "noise_alpha": Change.said(),
        "embedding_module": Change.said(),
    }

    noise_alpha: Annotated[float, AfterValidator(_some_noise)]
    """Noise of a row is uniform within ±noise_alpha / sqrt(tokens × width); the paper takes 5 to 15."""
    embedding_module: Annotated[str, Field(min_length=1)] | None = None
    """Dotted name of the module whose output gets the noise; None for what `get_input_embeddings()` gives."""
