"""How the plan of a run is computed from settings and data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer_core.best import best_metric_name, missing_metric
from trainer_core.cadence import Cadence, interval
from trainer_core.data.reading import BatchStream, stream
from trainer_core.errors import SettingsError
from trainer_core.optim.schedules import schedule_factor, warmup_steps
from trainer_core.plan import Plan
from trainer_core.rehearsal import metric_names
from trainer_core.settings.unread import unread_options

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Counts of a run; None where the data does not tell.

    Attributes:
        num_samples: training samples an epoch, over all ranks.
        micro_batches_per_epoch: on each rank.
        updates_per_epoch: the last, short one included.
        max_steps: updates in all.
        num_train_epochs: epochs in all, with a fraction.
    """

    num_samples: int | None
    micro_batches_per_epoch: int | None
    updates_per_epoch: int | None
    max_steps: int
    num_train_epochs: float | None


def arithmetic_of(trainer: Trainer, batches: BatchStream) -> Arithmetic:
    """Counts what a run does.

    Raises:
        SettingsError: the data has no length and `max_steps` is not given, or there is no data.
    """
    args = trainer.args
    micro_batches = batches.num_batches
    if micro_batches == 0:
        raise SettingsError(
            [
                "train_dataset: gives no micro-batch. Pass a dataset with at least one sample, and turn "
                "dataloader_drop_last off when it has fewer than a full batch."
            ]
        )
    if micro_batches is None and args.max_steps <= 0:
        raise SettingsError(["max_steps: is needed, the training data has no length. Set it to the updates to do."])
    updates = math.ceil(micro_batches / trainer.batching.accumulation) if micro_batches else None
    if args.max_steps > 0:
        max_steps = args.max_steps
        epochs = max_steps / updates if updates else None
    else:
        assert updates is not None
        max_steps = math.ceil(round(args.num_train_epochs * updates, 9))  # 100 * 0.07 is a hair above 7
        epochs = args.num_train_epochs
    return Arithmetic(_num_samples(trainer, batches), micro_batches, updates, max_steps, epochs)


def check_data(trainer: Trainer) -> None:
    """Raises SettingsError where there is nothing to train on."""
    if trainer.train_dataset is None and not trainer.overrides("get_train_dataloader"):
        raise SettingsError(["train_dataset: is needed to train. Pass one to Trainer."])


def plan_of(trainer: Trainer, arithmetic: Arithmetic | None = None) -> Plan:
    """Gives the plan: counts, evaluations, rates, and what plugins add."""
    if arithmetic is None:
        check_data(trainer)
        arithmetic = arithmetic_of(trainer, stream(trainer.get_train_dataloader()))
    args = trainer.args
    parameters = list(trainer.model.parameters())
    plan = Plan(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        num_samples=arithmetic.num_samples,
        batch_size=trainer.batching.batch_size,
        gradient_accumulation_steps=trainer.batching.accumulation,
        world_size=trainer.batching.world_size,
        micro_batches_per_epoch=arithmetic.micro_batches_per_epoch,
        updates_per_epoch=arithmetic.updates_per_epoch,
        num_train_epochs=arithmetic.num_train_epochs,
        max_steps=arithmetic.max_steps,
    )
    plan.unread = unread_options(args)
    if args.auto_find_batch_size and plan.world_size > 1:
        plan.contradict(
            f"auto_find_batch_size: works with one process, got {plan.world_size}: a rank that runs out of memory "
            f"would leave the others waiting. Lower per_device_train_batch_size and raise gradient_accumulation_steps."
        )
    _add_last_update(plan)
    _add_unknowns(plan)
    _add_evaluations(trainer, plan)
    _add_learning_rates(trainer, plan)
    trainer.bus.tell("on_plan", trainer=trainer, plan=plan)
    return plan


def _num_samples(trainer: Trainer, batches: BatchStream) -> int | None:
    if batches.num_rows is None or batches.num_batches is None:
        return None
    length = len(trainer.train_dataset)
    if not trainer.args.dataloader_drop_last:
        return length
    window = trainer.batching.window
    return length // window * window


def _add_last_update(plan: Plan) -> None:
    if plan.num_samples is not None and plan.updates_per_epoch:
        rest = plan.num_samples - (plan.updates_per_epoch - 1) * plan.global_batch_size
        plan.last_update_samples = min(rest, plan.global_batch_size)


def _add_unknowns(plan: Plan) -> None:
    if plan.micro_batches_per_epoch is None:
        plan.unknown.append("the length of an epoch: the training data does not tell it; max_steps ends the run")


def _add_evaluations(trainer: Trainer, plan: Plan) -> None:
    args = trainer.args
    if args.eval_on_start or args.eval_strategy != "no":
        _refuse_empty(trainer, plan)
    if args.eval_on_start:
        plan.schedule("evaluation", "eval_on_start", [0])
    if args.eval_strategy == "no":
        return
    cadence = Cadence(args.eval_strategy, interval(args.eval_steps, plan.max_steps), args.eval_delay)
    steps = cadence.steps(plan.max_steps, plan.updates_per_epoch, _epochs_at_the_end(plan))
    plan.schedule("evaluation", "eval_strategy", steps)
    if args.metric_for_best_model is not None:
        names = metric_names(trainer)
        if names is not None and best_metric_name(trainer) not in names:
            plan.contradict(missing_metric("metric_for_best_model", args.metric_for_best_model, sorted(names)))


def _refuse_empty(trainer: Trainer, plan: Plan) -> None:
    if trainer.overrides("evaluate") or trainer.overrides("get_eval_dataloader"):
        return
    datasets = trainer.eval_dataset
    named = datasets.items() if isinstance(datasets, Mapping) and datasets else [("", datasets)]
    for name, dataset in named:
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            which = f"{name!r} has" if name else "has"
            plan.contradict(f"eval_dataset: {which} no rows, got length 0. Pass one with at least one row.")


def _epochs_at_the_end(plan: Plan) -> float | None:
    """Gives the epochs trained after the last update, counted in micro-batches as the run counts them."""
    if not plan.updates_per_epoch or not plan.micro_batches_per_epoch:
        return None
    whole, rest = divmod(plan.max_steps, plan.updates_per_epoch)
    return whole + rest * plan.gradient_accumulation_steps / plan.micro_batches_per_epoch


def _add_learning_rates(trainer: Trainer, plan: Plan) -> None:
    """Adds the rate at the moments that matter, where it follows from the settings alone."""
    args = trainer.args
    is_users = trainer.users_optimizers != (None, None) or any(
        trainer.overrides(name) for name in ("create_optimizer_and_scheduler", "create_optimizer", "create_scheduler")
    )
    if is_users or trainer.bus.listens("create_scheduler") or trainer.bus.listens("create_optimizer"):
        plan.unknown.append(
            "the learning rate: it is that of the optimizer and scheduler that were passed or overridden"
        )
        return
    if args.lr_scheduler_type == "reduce_lr_on_plateau":
        plan.unknown.append("the learning rate after the start: it follows the evaluations")
    try:
        factor = schedule_factor(args, plan.max_steps)
    except SettingsError as error:
        for problem in error.problems:
            plan.contradict(problem)
        return
    warm = warmup_steps(args, plan.max_steps)
    moments = [("at the start", 0)]
    if 0 < warm < plan.max_steps:
        moments.append(("after warm-up", warm))
    moments += [("half-way", plan.max_steps // 2), ("at the end", max(plan.max_steps - 1, 0))]
    plan.learning_rates = [(when, step, args.learning_rate * factor(step)) for when, step in moments]
