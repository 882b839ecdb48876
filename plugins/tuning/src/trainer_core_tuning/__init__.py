"""A search for good settings: many runs of one trainer, proposed by Optuna, kept in a database that outlives a kill."""

from trainer_core_tuning.plugin import Tuning
from trainer_core_tuning.results import BestRun
from trainer_core_tuning.settings import TuningSettings

__all__ = ["BestRun", "Tuning", "TuningSettings"]
