"""One update: forward and backward over its micro-batches, clip, step, schedule.

Built once when training starts, from the settings and what the user overrides; nothing is looked up, walked or
decided anew in an update that could be decided then.

The gradient of an update is that of the mean loss over all its targets, on all ranks and in all micro-batches: a
micro-batch whose loss is a mean over n of N targets counts n / N. (DDP averages gradients over W ranks, so there the
weight is W n / N; without `average_tokens_across_devices` N counts this rank's targets and the weight is n / N.) Any
split of a batch gives the same gradient.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from trainer_core.criterion import build_loss
from trainer_core.data.batches import count_targets, to_device
from trainer_core.errors import DataError
from trainer_core.guard import Guard, can_judge_on_device
from trainer_core.loss import (
    Count,
    check_loss,
    takes,
    takes_count,
)
from trainer_core.meter import LossMeter
from trainer_core.optim.clipping import build_clipper
from trainer_core.optim.optimizers import raw_step

if TYPE_CHECKING:
    from trainer_core.bus import StepHooks
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.step")

Weight = float | torch.Tensor
Value = float | torch.Tensor


class Stepper:
    """Does updates for one call of `train()`."""

    def __init__(self, trainer: Trainer, meter: LossMeter) -> None:
        self.trainer = trainer
        self.meter = meter
        self.args = trainer.args
        self.ranks = trainer.ranks
        self.model = trainer.model_wrapped
        self.optimizer = trainer.optimizer
        self.schedule_step = trainer.scheduler_step
        self.scaler = trainer.scaler
        self.device = self.ranks.device
        self.moves = self.device.type != "cpu"
        self.parts = 1
        self.is_checked = False
        self.is_torn = False
        self.count: Count | None = None
        self.weight: Weight | None = None
        self.last: tuple[Value, torch.Tensor | None] = 0.0, None
        self.label_names = trainer.label_names
        self.is_shifted = trainer.is_shifted
        self.gives_count = (
            trainer.compute_loss_takes_count or trainer.compute_loss_func is not None or takes_count(trainer.model)
        )
        reads_now = self.scaler is not None or not can_judge_on_device(self.optimizer, self.device)
        self.reads_now = reads_now and (self.device.type == "cpu" or self.args.nan_policy != "ignore")
        self.guard = Guard(self.args.nan_policy, self.optimizer, self.ranks, reads_now=self.reads_now)
        self.loss = build_loss(trainer, self.model)
        self.is_alone = self.ranks.world_size == 1
        self.spread = self.ranks.world_size if self.args.average_tokens_across_devices else 1
        self.ddp = self.model if isinstance(self.model, DistributedDataParallel) else None
        self.training_step = trainer.training_step if trainer.overrides("training_step") else None
        self.training_step_takes_count = takes(trainer.training_step, "num_items_in_batch")
        self.empty_cache_steps = self.args.torch_empty_cache_steps if self.moves else None
        self.refresh()

    def refresh(self) -> None:
        """Collects parameters anew; called when an epoch begins, after plugins may have changed the model."""
        in_optimizer = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.parameters = list({id(p): p for p in [*self.trainer.model.parameters(), *in_optimizer]}.values())
        max_norm = self.args.max_grad_norm
        self.clip = build_clipper(self.parameters, max_norm) if max_norm else None
        self.first_group = self.optimizer.param_groups[0]
        self.optimizer_step = raw_step(self.optimizer)

    def update(self, window: Sequence[Any], hooks: StepHooks, step: int, *, is_padded: bool = False) -> None:
        """Trains on the micro-batches of one update.

        Args:
            window: the micro-batches, at least one.
            hooks: compiled hooks.
            step: number of this update, from 1; named in errors.
            is_padded: the last micro-batch of this rank only keeps ranks in step and counts nothing.

        Raises:
            NonFiniteLossError: the loss is not finite and the policy is to stop; the weights are untouched.
        """
        self.apply(self.accumulate(window, hooks, is_padded=is_padded), hooks, step)

    def accumulate(self, window: Sequence[Any], hooks: StepHooks, *, is_padded: bool) -> Value:
        """Goes forward and backward with the micro-batches of an update; gives this rank's share of its loss."""
        weights = self.weigh(window, is_padded=is_padded)
        total: Value = 0.0
        last = len(window) - 1
        for index, inputs in enumerate(window):
            if weights is not None:
                self.weight = weights[index]
                if self.is_alone and _is_nothing(self.weight):
                    continue  # a micro-batch without targets has no loss
            if self.moves:
                inputs = to_device(inputs, self.device)
            if self.ddp is not None:
                self.ddp.require_backward_grad_sync = index == last
            if self.training_step is None:
                total += self.learn(self.loss(inputs, self.count))
            else:
                total += self.learn_as_overridden(inputs)
            if index < last and hooks.on_substep_end is not None:
                hooks.on_substep_end(self.trainer)
        return total

    def learn(self, loss: torch.Tensor) -> Value:
        """Adds the weighted gradient of a micro-batch's loss; gives its share of the update's loss on this rank."""
        if not self.is_checked:
            check_loss(loss)
            self.is_checked = True
        weight = self.weight
        if _is_nothing(weight):
            return self.learn_nothing(loss)
        if self.count is not None and self.count.was_used:
            self.count.was_used = False  # the loss is a share of the update's already
            weight = float(self.spread)
        value: Value = loss.item() if self.reads_now else loss.detach()
        if weight is not None:
            value = value * weight / self.ranks.world_size
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        if weight is None:
            loss.backward()  # type: ignore[no-untyped-call] # torch's own
        else:
            (loss * weight).backward()  # type: ignore[no-untyped-call] # backward(gradient=…) would import sympy
        return value

    def learn_nothing(self, loss: torch.Tensor) -> Value:
        """Goes backward with a gradient of 0: a micro-batch without targets only keeps ranks in step."""
        if not torch.isfinite(loss):  # a mean over nothing; 0 times its gradient need not be 0
            loss = torch.stack([parameter.sum() for parameter in self.parameters if parameter.requires_grad]).sum()
        (loss * 0.0).backward()  # type: ignore[no-untyped-call] # torch's own
        return 0.0

    def learn_as_overridden(self, inputs: Any) -> Value:
        """Trains on one micro-batch through the user's `training_step`, which goes backward itself."""
        assert self.training_step is not None
        if self.training_step_takes_count:
            loss = self.training_step(self.model, inputs, self.count)
        else:
            loss = self.training_step(self.model, inputs)
        return loss.item() if self.reads_now else loss.detach()

    def training_step_by_default(self, inputs: Any) -> torch.Tensor:
        """What `Trainer.training_step` does unless it is overridden; gives the share as a tensor."""
        return torch.as_tensor(self.learn(self.loss(inputs, self.count)))

    def apply(self, loss: Value, hooks: StepHooks, step: int) -> None:
        """Updates the weights with the gradients that are there, unless `loss` forbids it; drops the gradients."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self.clip() if self.clip is not None else None
        self.last = loss, norm
        judged_norm = norm if self.scaler is None else None  # a gradient that overflows is the scaler's business
        if self.guard.is_on and not self.guard.passes(loss, judged_norm, step):
            if self.scaler is not None:
                self.scaler.update()  # ends what unscale_ began
            return self.clear_gradients()
        if hooks.on_pre_optimizer_step is not None:
            hooks.on_pre_optimizer_step(self.trainer)
        self.is_torn = True
        self.meter.add(*self.guard.counted(loss))
        self.meter.learning_rate = self.first_group["lr"]
        self.meter.grad_norm = norm
        is_done = True
        if self.scaler is None:
            self.optimizer_step()
        else:
            is_done = self._scaled_step(self.scaler)
        if hooks.on_optimizer_step is not None:
            hooks.on_optimizer_step(self.trainer)
        if is_done and self.schedule_step is not None:
            self.schedule_step()
        for parameter in self.parameters:
            parameter.grad = None
        self.is_torn = False
        if self.empty_cache_steps and step % self.empty_cache_steps == 0:
            torch.get_device_module(self.device).empty_cache()
        return None

    def weigh(self, window: Sequence[Any], *, is_padded: bool) -> list[Weight] | None:
        """Gives the weight of each micro-batch, or None when there is one micro-batch on one rank.

        Sets `count`, the number of targets of the update, for losses that ask for it.
        """
        is_whole = len(window) == 1 and self.is_alone
        self.weight = None
        if is_whole and not self.gives_count:
            return None
        counts = [count_targets(inputs, self.label_names, shifted=self.is_shifted) for inputs in window]
        if is_padded:
            counts[-1] = 0
        total: Any = sum(counts)
        if self.spread > 1:
            total = self.ranks.sum(torch.as_tensor(total, device=self.device))
            total = total.item() if self.device.type == "cpu" else total
        if self.gives_count:
            self.count = Count.of(torch.as_tensor(total, device=self.device))
        if is_whole:
            return None
        if not isinstance(total, torch.Tensor) and total == 0:
            return self._weights_of_nothing(len(window))
        return [count * self.spread / total for count in counts]

    def _weights_of_nothing(self, length: int) -> list[Weight]:
        """Gives the weights in an update without a target, whose mean loss is NaN."""
        if self.spread < self.ranks.world_size or self.args.nan_policy == "ignore":
            return [0.0] * length
        if self.args.nan_policy == "skip":
            return [math.nan] * length
        raise DataError(
            "update: none of its labels counts, all are -100. Look at the labels that the data collator makes."
        )

    def clear_gradients(self) -> None:
        """Drops all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def _scaled_step(self, scaler: torch.amp.GradScaler) -> bool:
        """Steps through the gradient scaler; tells whether the weights were updated."""
        scale = scaler.get_scale()
        scaler.step(self.optimizer)
        scaler.update()
        return bool(scaler.get_scale() >= scale)


def _is_nothing(weight: Weight | None) -> bool:
    """Tells whether a micro-batch is known to have no target; on an accelerator that is not known on the host."""
    return isinstance(weight, float) and weight == 0.0
