"""Digests of what updates did, and the repetition of updates that compares with them."""

from trainer_core_replay.comparing import Difference
from trainer_core_replay.errors import ReplayError
from trainer_core_replay.plugin import Digests, Replay
from trainer_core_replay.report import Report
from trainer_core_replay.settings import DigestsSettings, ReplaySettings

__all__ = ["Difference", "Digests", "DigestsSettings", "Replay", "ReplayError", "ReplaySettings", "Report"]
