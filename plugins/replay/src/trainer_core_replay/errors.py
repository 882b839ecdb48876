"""What ends a replay before it can compare anything."""

from trainer_core import TrainerCoreError


class ReplayError(TrainerCoreError):
    """Nothing can be compared: there is no such checkpoint, no digest was recorded there, or the ranks are others."""
