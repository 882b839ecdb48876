"""Experiment trackers of a run: TensorBoard, Weights & Biases, MLflow, Trackio and whatever else Accelerate knows."""

from trainer_core_trackers.plugin import Trackers
from trainer_core_trackers.settings import TrackersSettings

__all__ = ["Trackers", "TrackersSettings"]
