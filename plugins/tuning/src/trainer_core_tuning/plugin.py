"""The plugin: answers `Trainer.hyperparameter_search`; in any other run it does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trainer_core_tuning.settings import TuningSettings

if TYPE_CHECKING:
    from trainer_core import Section, Trainer
    from trainer_core_tuning.results import BestRun


class Tuning:
    """Searches for good settings with Optuna."""

    settings_type: ClassVar[type[Section]] = TuningSettings

    def __init__(self, settings: TuningSettings) -> None:
        self.settings = settings

    def search_hyperparameters(self, trainer: Trainer, options: Mapping[str, Any]) -> BestRun | list[BestRun]:
        """Trains with many settings and gives the best run, or the best runs of several objectives."""
        from trainer_core_tuning.search import search

        return search(trainer, self.settings, options)
