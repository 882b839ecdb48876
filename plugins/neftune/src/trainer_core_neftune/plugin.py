"""The plugin: noise goes on when training begins, and off when the run ends, however it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer_core import ModelError
from trainer_core_neftune.settings import NeftuneSettings

if TYPE_CHECKING:
    from trainer_core import Plan, Section, Trainer
    from trainer_core_neftune.noise import Noise


class Neftune:
    """Adds uniform noise to the input embeddings, in training only."""

    settings_type: ClassVar[type[Section]] = NeftuneSettings

    def __init__(self, settings: NeftuneSettings) -> None:
        self.settings = settings
        self._noise: Noise | None = None

    def on_plan(self, trainer: Trainer, plan: Plan) -> None:
        """Refuses a model without the embedding that is to get the noise."""
        from trainer_core_neftune.embedding import embeddings_of

        try:
            embeddings_of(trainer.model, self.settings.embedding_module)
        except ModelError as error:
            plan.contradict(str(error))

    def on_train_begin(self, trainer: Trainer) -> None:
        """Puts the noise on the model."""
        from trainer_core_neftune.compilation import forget_graphs
        from trainer_core_neftune.embedding import embeddings_of
        from trainer_core_neftune.noise import Noise

        embeddings = embeddings_of(trainer.model, self.settings.embedding_module)
        forget_graphs(trainer.model_wrapped)
        self._noise = Noise(trainer.model, embeddings, self.settings.noise_alpha)

    def on_teardown(self) -> None:
        """Takes it off again."""
        if self._noise is not None:
            self._noise.remove()
            self._noise = None
