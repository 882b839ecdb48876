"""The plugin on the bus of a replay: compares each recorded update, and ends the run at the first difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer_core import Signal, hookimpl
from trainer_core_replay.comparing import Compared, compare
from trainer_core_replay.digest import tensors_of
from trainer_core_replay.errors import ReplayError
from trainer_core_replay.recorded import Recorded
from trainer_core_replay.taking import Taker, parameters_of

if TYPE_CHECKING:
    from trainer_core import Trainer

NAME = "replay_watch"


class Watch:
    """Compares updates with what was recorded of them.

    Args:
        recorded: by update.
        from_step: update that the replay begins from.
        last_step: update after which it ends.

    Attributes:
        rows: what was compared on this rank.
    """

    name = NAME

    def __init__(self, recorded: Mapping[int, Recorded], from_step: int, last_step: int) -> None:
        self.recorded = recorded
        self.from_step = from_step
        self.last_step = last_step
        self.rows: list[Compared] = []
        self._taker = Taker()

    @hookimpl(trylast=True)
    def on_train_begin(self, trainer: Trainer) -> None:
        """Compares the parameters that the replay begins with.

        Raises:
            ReplayError: the checkpoint is of another update.
        """
        step = trainer.state.global_step
        if step != self.from_step:
            raise ReplayError(f"from_step: the checkpoint is of update {step}, got {self.from_step}. Name that one.")
        if "parameters" in self._values(step):
            self._compare(trainer, step, parameters_of(trainer))

    def on_step_begin(self, trainer: Trainer) -> None:
        """Takes what an update begins with, where it was recorded."""
        if trainer.state.global_step + 1 in self.recorded:
            self._taker.begin(trainer)

    def on_optimizer_step(self, trainer: Trainer) -> None:
        """Takes the norm of the gradient where the run does not compute it."""
        self._taker.measure(trainer)

    @hookimpl(trylast=True)
    def on_step_end(self, trainer: Trainer) -> None:
        """Compares an update, after all other plugins had it, and ends the replay when all is done."""
        step = trainer.state.global_step
        values = self._taker.finish(trainer, with_parameters="parameters" in self._values(step))
        if values is not None:
            self._compare(trainer, step, values)
        if step >= self.last_step:
            trainer.request(Signal.STOP, by=NAME, why=f"update {step} is the last to be repeated", interrupt=True)

    def on_teardown(self) -> None:
        """Forgets an update that was not finished."""
        self._taker.drop()

    def _values(self, step: int) -> Mapping[str, Any]:
        recorded = self.recorded.get(step)
        return {} if recorded is None else recorded.values

    def _compare(self, trainer: Trainer, step: int, values: Mapping[str, Any]) -> None:
        names = [name for name, _ in tensors_of(trainer.model)]
        row = compare(self.recorded[step], values, names, trainer.ranks.rank)
        self.rows.append(row)
        if row.difference is not None:
            why = f"update {step} differs in its {row.difference.quantity}"
            trainer.request(Signal.STOP, by=NAME, why=why, interrupt=True, local=True)
