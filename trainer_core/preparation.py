"""Phase INIT: from the user's objects to what the loop trains."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer_core.activations import checkpoint_activations
from trainer_core.assembly import new_model
from trainer_core.batching import kept_batching, new_batching
from trainer_core.buckets import settle_buckets
from trainer_core.cadence import Cadence, interval
from trainer_core.data.reading import stream
from trainer_core.errors import ModelError, SettingsError
from trainer_core.modes import refuse_unshared
from trainer_core.optim.schedules import PlateauSchedule
from trainer_core.planning import Arithmetic, arithmetic_of, check_data, plan_of

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.preparation")


def prepare(trainer: Trainer) -> None:
    """Makes model, data, optimizer and schedule ready, and refuses what cannot be trained.

    Raises:
        SettingsError: the settings contradict each other, the model or the data; all contradictions at once.
    """
    check_data(trainer)
    if trainer.model_init is not None:
        trainer.model = new_model(trainer)
        vars(trainer).pop("is_shifted", None)  # what was known of the model before
        vars(trainer).pop("label_names", None)
        trainer.optimizer, trainer.lr_scheduler = None, None  # type: ignore[assignment] # made anew below
    place(trainer)
    trainer.train_dataloader = trainer.get_train_dataloader()
    seed = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
    refuse_unshared(trainer, trainer.train_dataloader, "get_train_dataloader")
    trainer.train_stream = stream(trainer.train_dataloader, seed=seed)
    set_batching(trainer)
    arithmetic = arithmetic_of(trainer, trainer.train_stream)
    set_counters(trainer, arithmetic)
    plan = plan_of(trainer, arithmetic)
    if plan.contradictions:
        raise SettingsError(plan.contradictions)
    trainer.last_plan = plan
    for told in plan.unread if trainer.ranks.is_main else ():
        logger.warning(told)
    wrap(trainer)
    create_optimizer_and_scheduler(trainer, arithmetic.max_steps)
    trainer.scaler = torch.amp.GradScaler(trainer.ranks.device.type) if trainer.precision is torch.float16 else None


def set_batching(trainer: Trainer) -> None:
    """Decides how an update is shared out over ranks and micro-batches: in a resumed run with the samples it had.

    Raises:
        SettingsError: it cannot be shared out so.
    """
    assert trainer.running is not None
    args, state, world_size = trainer.args, trainer.state, trainer.ranks.world_size
    batching = new_batching(args, world_size)
    if state.global_batch_size and trainer.train_stream.is_own:  # what a user's own loader gives is not cut anew
        batching = kept_batching(args, world_size, state.global_batch_size, state.data_window)
        if batching.accumulation != args.gradient_accumulation_steps and trainer.ranks.is_main:
            told = "gradient_accumulation_steps: is %d instead of %d; an update keeps its %d samples (%s)."
            named, kept = args.gradient_accumulation_steps, batching.accumulation
            logger.warning(told, kept, named, batching.global_batch_size, batching)
    trainer.running.loop.batching = batching
    state.global_batch_size, state.data_window = batching.global_batch_size, batching.window


def place(trainer: Trainer) -> None:
    """Puts the model on this rank's device and checks that there is something to train."""
    model, device = trainer.model, trainer.ranks.device
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("model: has no parameter that requires a gradient. Set requires_grad on those to train.")
    if device.type != "cpu":
        model.to(device)
    model.train()
    model.zero_grad()
    trainer.model_wrapped = model


def wrap(trainer: Trainer) -> None:
    """Wraps the model for this run: activation checkpointing, compilation, several ranks."""
    args = trainer.args
    if args.activation_checkpointing:
        assert trainer.running is not None
        trainer.running.undo.callback(checkpoint_activations(trainer.model, args.activation_checkpointing_kwargs))
    model: nn.Module = trainer.model
    if args.torch_compile:
        model = torch.compile(model, backend=args.torch_compile_backend or "inductor", mode=args.torch_compile_mode)  # type: ignore[assignment] # torch types it as a callable
    if trainer.ranks.world_size > 1:
        model = trainer.accelerator.prepare_model(model)
        settle_buckets(model, trainer.ranks.world_size)
    trainer.model_wrapped = model


def set_counters(trainer: Trainer, arithmetic: Arithmetic) -> None:
    """Resolves shares and epochs into updates."""
    args, state = trainer.args, trainer.state
    state.max_steps = arithmetic.max_steps
    per_epoch = arithmetic.updates_per_epoch
    state.num_train_epochs = math.ceil(state.max_steps / per_epoch) if per_epoch else 0
    state.train_batch_size = args.per_device_train_batch_size
    state.eval_steps = interval(args.eval_steps, state.max_steps)
    trainer.eval_cadence = Cadence(args.eval_strategy, state.eval_steps, args.eval_delay)


def create_optimizer_and_scheduler(trainer: Trainer, max_steps: int) -> None:
    """Makes optimizer and schedule through the methods that a user may override."""
    optimizer, lr_scheduler = trainer.users_optimizers
    trainer.optimizer, trainer.lr_scheduler = optimizer, lr_scheduler  # type: ignore[assignment] # None is made anew
    try:
        trainer.create_optimizer_and_scheduler(max_steps)
    finally:
        trainer.made_for_run = (
            trainer.optimizer if optimizer is None else None,
            trainer.lr_scheduler if lr_scheduler is None else None,
        )
    if not isinstance(trainer.optimizer, torch.optim.Optimizer):
        got = type(trainer.optimizer).__name__
        problem = f"create_optimizer: must set self.optimizer to a torch optimizer, got {got}. Return what it made."
        raise SettingsError([problem])
    trainer.waits_for_metric = isinstance(trainer.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    trainer.scheduler_step = _step_of(trainer.lr_scheduler, waits=trainer.waits_for_metric)


def _step_of(scheduler: Any, *, waits: bool) -> Callable[[], None] | None:
    if scheduler is None or waits or isinstance(scheduler, PlateauSchedule):
        return None
    step: Callable[[], None] = scheduler.step
    return step
