"""Ends a run that no longer improves, or that has reached a goal or spent a budget."""

from trainer_core_early_stopping.callback import EarlyStoppingCallback
from trainer_core_early_stopping.plugin import EarlyStopping
from trainer_core_early_stopping.settings import EarlyStoppingSettings, StopAtSettings
from trainer_core_early_stopping.stop_at import StopAt

__all__ = ["EarlyStopping", "EarlyStoppingCallback", "EarlyStoppingSettings", "StopAt", "StopAtSettings"]
