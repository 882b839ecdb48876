"""NEFTune: uniform noise on the input embeddings, in training only."""

from trainer_core_neftune.plugin import Neftune
from trainer_core_neftune.settings import NeftuneSettings

__all__ = ["Neftune", "NeftuneSettings"]
