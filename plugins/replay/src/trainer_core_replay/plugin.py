"""The plugins: one records digests, the other answers `Trainer.replay`; neither is asked in any other run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trainer_core import hookimpl
from trainer_core_replay.settings import DigestsSettings, ReplaySettings
from trainer_core_replay.taking import KIND, Taker, parameters_of

if TYPE_CHECKING:
    from trainer_core import Plan, Section, Trainer
    from trainer_core_replay.report import Report


class Digests:
    """Records digests of updates in the journal of each rank."""

    settings_type: ClassVar[type[Section]] = DigestsSettings
    fires_in_replay: ClassVar[bool] = False

    def __init__(self, settings: DigestsSettings) -> None:
        self.settings = settings
        self._taker = Taker()

    def on_plan(self, plan: Plan) -> None:
        """Adds when digests are recorded."""
        for name, every in (
            ("digest_steps", self.settings.steps),
            ("digest_parameter_steps", self.settings.parameter_steps),
        ):
            plan.schedule("digests", name, range(every, plan.max_steps + 1, every))

    @hookimpl(trylast=True)
    def on_train_begin(self, trainer: Trainer) -> None:
        """Records the parameters that the run begins with."""
        self._record(trainer, parameters_of(trainer))

    def on_step_begin(self, trainer: Trainer) -> None:
        """Takes what an update begins with, where it is to be recorded."""
        step = trainer.state.global_step + 1
        if step % self.settings.steps == 0 or self._is_due(trainer, step):
            self._taker.begin(trainer)

    def on_optimizer_step(self, trainer: Trainer) -> None:
        """Takes the norm of the gradient where the run does not compute it."""
        self._taker.measure(trainer)

    @hookimpl(trylast=True)
    def on_step_end(self, trainer: Trainer) -> None:
        """Records an update, after all other plugins had it."""
        values = self._taker.finish(trainer, with_parameters=self._is_due(trainer, trainer.state.global_step))
        if values is not None:
            self._record(trainer, values)

    def on_teardown(self) -> None:
        """Forgets an update that was not finished."""
        self._taker.drop()

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        """Tells whether the parameters after update `step` are to be recorded."""
        return step % self.settings.parameter_steps == 0 or step == trainer.state.max_steps

    @staticmethod
    def _record(trainer: Trainer, values: Mapping[str, Any]) -> None:
        trainer.record(KIND, ranks=trainer.ranks.world_size, values=dict(values))


class Replay:
    """Repeats updates of a run and compares them with its journal."""

    settings_type: ClassVar[type[Section]] = ReplaySettings

    def __init__(self, settings: ReplaySettings) -> None:
        self.settings = settings

    def replay_updates(self, trainer: Trainer, options: Mapping[str, Any]) -> Report:
        """Repeats updates of a run and gives how they compare with it."""
        from trainer_core_replay.replaying import replay

        return replay(trainer, **options)
