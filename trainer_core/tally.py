"""What a run has trained on: samples, and where it is asked for the tokens of the model's main input.

Counted over all ranks, before the update, from the micro-batches as the loader gives them; a micro-batch that only
keeps a rank in step with the others counts nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trainer_core.data.batches import batch_size_of
from trainer_core.errors import DataError

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.tally")


class Tally:
    """Adds up the samples of updates in `trainer.state`; made when training begins."""

    def __init__(self, trainer: Trainer) -> None:
        self.state = trainer.state
        self.ranks = trainer.ranks
        self.stream = trainer.train_stream
        self.accumulation = trainer.batching.accumulation
        self.samples_of_full_window = trainer.batching.global_batch_size if self.stream.num_rows is not None else 0

    def begin(self) -> None:
        """Remembers what earlier calls of `train()` counted; after a checkpoint is loaded."""
        self.first_step, self.first_sample = self.state.global_step, self.state.num_samples_seen
        self.first_token = self.state.num_input_tokens_seen

    def add(self, window: Sequence[Any], *, is_padded: bool) -> None:
        """Adds the micro-batches of an update; `is_padded` says that the last of them counts nothing."""
        is_full = len(window) == self.accumulation and self.state.batches_done != self.stream.num_batches
        if is_full and self.samples_of_full_window:
            self.state.num_samples_seen += self.samples_of_full_window
            return
        own = sum(batch_size_of(inputs) for inputs in (window[:-1] if is_padded else window))
        self.state.num_samples_seen += int(self.ranks.sum_of_numbers(own)[0])

    def rates(self, seconds: float) -> dict[str, float]:
        """Gives what this call of `train()` trained on a second."""
        samples, updates = self.state.num_samples_seen - self.first_sample, self.state.global_step - self.first_step
        return {
            "train_samples_per_second": round(samples / seconds, 3),
            "train_steps_per_second": round(updates / seconds, 3),
        }


class TokenTally(Tally):
    """Adds up tokens, too: one sum over ranks an update."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.main_input = trainer.main_input
        self.skips_padding = trainer.args.include_num_input_tokens_seen == "non_padding"
        self.warned: set[str] = set()

    def add(self, window: Sequence[Any], *, is_padded: bool) -> None:
        """Adds the micro-batches of an update; `is_padded` says that the last of them counts nothing."""
        super().add(window, is_padded=is_padded)
        own = sum(self.tokens_of(inputs) for inputs in (window[:-1] if is_padded else window))
        self.state.num_input_tokens_seen += int(self.ranks.sum_of_numbers(own)[0])

    def rates(self, seconds: float) -> dict[str, float]:
        """Gives what this call of `train()` trained on a second."""
        tokens = self.state.num_input_tokens_seen - self.first_token
        return super().rates(seconds) | {"train_tokens_per_second": round(tokens / seconds, 3)}

    def tokens_of(self, inputs: Any) -> int:
        """Gives the tokens of a micro-batch: elements of its main input, but padding where that is left out.

        Raises:
            DataError: the main input is no tensor.
        """
        if self.skips_padding:
            mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
            if isinstance(mask, torch.Tensor):
                return int(mask.sum())
            self._warn_once("batches have no attention_mask; all tokens are counted, padding too.")
        tokens = self.main_input(inputs)
        if not isinstance(tokens, torch.Tensor):
            raise DataError(
                f"include_num_input_tokens_seen: the main input must be a tensor, got {type(tokens).__name__}. "
                f"Set main_input_name of the model to the input that holds tokens, or turn the counting off."
            )
        if tokens.is_floating_point():
            self._warn_once("the main input holds no token ids but fractions; its elements are counted.")
        return tokens.numel()

    def _warn_once(self, what: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            logger.warning("include_num_input_tokens_seen: %s", what)


def tally_of(trainer: Trainer) -> Tally:
    """Gives what counts for `trainer`: nothing is done for tokens where nobody asks for them."""
    return TokenTally(trainer) if trainer.args.counts_tokens else Tally(trainer)
