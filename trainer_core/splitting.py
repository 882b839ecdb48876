"""Micro-batches that are split until an update fits into memory (`auto_find_batch_size`).

Nothing begins anew: the update at hand is done again, with the same samples, random numbers and gradient, in parts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from trainer_core.data.batches import split_batch
from trainer_core.meter import LossMeter
from trainer_core.step import Stepper, Value

if TYPE_CHECKING:
    from trainer_core.bus import StepHooks
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.splitting")


class SplittingStepper(Stepper):
    """Does updates whose micro-batches are trained in `parts`."""

    def accumulate(self, window: Sequence[Any], hooks: StepHooks, *, is_padded: bool) -> Value:
        """Does the same with parts of the micro-batches, in twice as many whenever memory does not do."""
        random_states = self._random_states()
        while True:
            parts = [part for inputs in window for part in split_batch(inputs, self.parts)]
            try:
                return super().accumulate(parts, hooks, is_padded=is_padded)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or self.parts >= self.args.per_device_train_batch_size:
                    raise
            self.clear_gradients()
            self.parts *= 2
            self._set_random_states(random_states)
            if self.moves:
                torch.get_device_module(self.device).empty_cache()
            logger.warning(
                "step %d: out of memory; micro-batches are trained in %d parts from here on, with the same gradient "
                "(auto_find_batch_size).",
                self.trainer.state.global_step + 1,
                self.parts,
            )

    def _random_states(self) -> list[torch.Tensor]:
        """Gives the random states that a forward pass draws from: torch's, and that of its CUDA device."""
        states = [torch.random.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def _set_random_states(self, states: list[torch.Tensor]) -> None:
        torch.random.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)


def stepper_of(trainer: Trainer, meter: LossMeter) -> Stepper:
    """Gives what does the updates of `trainer`."""
    return SplittingStepper(trainer, meter) if trainer.args.auto_find_batch_size else Stepper(trainer, meter)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text
