"""The function from a batch to its mean loss, built once when training starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from trainer_core.loss import Count, call_model, find_loss, loss_of, own_loss_and_outputs, refuse_misfit, takes_count

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

Criterion = Callable[[Any, Count | None], torch.Tensor]
"""(batch, number of targets of the update, for those that ask for it) -> mean loss."""


def build_loss(trainer: Trainer, model: torch.nn.Module) -> Criterion:
    """Gives the function from a batch to its mean loss: the user's, a plugin's, or the model's own."""
    loss = _loss_without_precision(trainer, model)
    if trainer.precision is None:
        return loss
    kind, dtype = trainer.ranks.device.type, trainer.precision

    def loss_in_precision(inputs: Any, count: Count | None) -> torch.Tensor:
        with torch.autocast(kind, dtype=dtype):
            return loss(inputs, count)

    return loss_in_precision


def _loss_without_precision(trainer: Trainer, model: torch.nn.Module) -> Criterion:
    if trainer.overrides("compute_loss"):
        if trainer.compute_loss_takes_count:
            return lambda inputs, count: trainer.compute_loss(model, inputs, num_items_in_batch=count)
        return lambda inputs, count: trainer.compute_loss(model, inputs)
    own = _loss_of_arguments(trainer, model)
    if not trainer.bus.listens("compute_loss"):
        return own

    def asked(inputs: Any, count: Count | None) -> torch.Tensor:
        answer = trainer.bus.ask("compute_loss", trainer=trainer, model=model, inputs=inputs)
        return own(inputs, count) if answer is None else answer

    return asked


def _loss_of_arguments(trainer: Trainer, model: torch.nn.Module) -> Criterion:
    if trainer.compute_loss_func is not None or trainer.args.label_smoothing_factor > 0:
        return lambda inputs, count: own_loss_and_outputs(trainer, model, inputs, count)[0]
    if takes_count(trainer.model):
        return lambda inputs, count: loss_of(call_model(model, inputs, num_items_in_batch=count))
    return _own_loss(model)


def _own_loss(model: torch.nn.Module) -> Criterion:
    """Gives the model's own loss with as little as can be between a batch and the model."""

    def own_loss(inputs: Any, count: Count | None) -> torch.Tensor:
        kind = type(inputs)
        try:
            if kind is dict:
                outputs = model(**inputs)
            elif kind is tuple or kind is list:
                outputs = model(*inputs)
            else:
                outputs = call_model(model, inputs)
        except TypeError as error:
            refuse_misfit(model, inputs, error)
            raise
        loss = find_loss(outputs)
        return loss if loss is not None else loss_of(outputs)

    return own_loss
