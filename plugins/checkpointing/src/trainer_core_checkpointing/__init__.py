"""Checkpoints of a run that are whole, verified and never pickled."""

from trainer_core_checkpointing.plugin import Checkpointing
from trainer_core_checkpointing.settings import CheckpointingSettings

__all__ = ["Checkpointing", "CheckpointingSettings"]
