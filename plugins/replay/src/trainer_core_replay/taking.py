"""What is taken of an update, and when.

    on_step_begin       the samples and their batches, before anything can change them
    on_optimizer_step   the norm of the gradient, where the run does not compute it anyway
    on_step_end         the loss, that norm, and the parameters

The numbers are those that the run has: of the loss this rank's share. Nothing is exchanged between ranks, each keeps
its own account; the parameters, which are the same on all of them, are the main rank's matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from trainer_core_replay.digest import digest_of_tensors, digest_of_value, exact, tensors_of

if TYPE_CHECKING:
    import torch

    from trainer_core import Trainer

QUANTITIES: Final[tuple[str, ...]] = ("samples", "batch", "loss", "grad_norm", "parameters")
"""What is compared, in the order in which one follows from the other within an update."""
KIND: Final = "digests"
"""Of the records in the journal."""
NAMED_ROWS: Final = 6
"""Rows of the dataset that are named beside their digest."""


class Taker:
    """Takes the digests of one update after the other."""

    def __init__(self) -> None:
        self._taken: dict[str, Any] | None = None
        self._norm: torch.Tensor | None = None

    def begin(self, trainer: Trainer) -> None:
        """Takes what an update begins with."""
        self._norm = None
        self._taken = {"samples": samples_of(trainer), "batch": digest_of_value(trainer.window)}

    def drop(self) -> None:
        """Forgets an update that is not wanted."""
        self._taken = None

    def measure(self, trainer: Trainer) -> None:
        """Takes the norm of the gradient of an update that is wanted, if the run does not compute it."""
        if self._taken is not None and trainer.last_loss_and_norm[1] is None:
            import torch

            gradients = (parameter.grad for parameter in trainer.model.parameters())
            self._norm = torch.nn.utils.get_total_norm([one for one in gradients if one is not None])

    def finish(self, trainer: Trainer, *, with_parameters: bool) -> dict[str, Any] | None:
        """Gives the values of an update that is wanted, else None."""
        taken, self._taken = self._taken, None
        if taken is None:
            return None
        loss, norm = trainer.last_loss_and_norm
        taken |= {"loss": exact(loss), "grad_norm": exact(self._norm if norm is None else norm)}
        return taken | parameters_of(trainer) if with_parameters else taken


def samples_of(trainer: Trainer) -> str:
    """Says which samples this rank's micro-batches hold, while an update begins.

    They follow from the position in the data; nothing is carried along for it.
    """
    state = trainer.state
    start = state.batches_done
    stop = start + len(trainer.window)
    rows = trainer.train_stream.rows_of(state.epochs_done, start, stop)
    place = f"epoch {state.epochs_done}, micro-batches {start} to {stop - 1}"
    return place if rows is None else f"{place}: rows {_in_words(rows)}"


def parameters_of(trainer: Trainer) -> dict[str, str]:
    """Gives the digest of the model's parameters and buffers, and of each of them; on the main rank."""
    if not trainer.is_main_rank:
        return {}
    whole, each = digest_of_tensors(tensors_of(trainer.model))
    return {"parameters": whole, "tensors": each}


def _in_words(rows: Sequence[int]) -> str:
    named = ", ".join(map(str, islice(rows, NAMED_ROWS)))
    return named if len(rows) <= NAMED_ROWS else f"{named}, … ({len(rows)}, {digest_of_value(list(rows))})"
