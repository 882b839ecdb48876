"""What options of the core cannot mean together, and what follows from one for another.

Both are asked when every single value is valid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from trainer_core.settings import names
from trainer_core.settings.section import DEFAULT, Given, problem

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments

LAUNCHED_PRECISION: Final = "ACCELERATE_MIXED_PRECISION"
"""Environment variable in which `accelerate launch` hands on its option --mixed_precision."""

COMPILE_OPTIONS: Final = ("torch_compile_backend", "torch_compile_mode")


def derived_values(args: TrainingArguments) -> dict[str, tuple[object, str]]:
    """Gives options that were left out and follow from others: name -> value and the option it follows from."""
    found: dict[str, tuple[object, str]] = {}
    every = args.logging_steps if "logging_steps" in args.sources else None  # no plugin of that name, no such option
    if args.eval_strategy == "steps" and args.eval_steps is None and every is not None:
        found["eval_steps"] = (every, "logging_steps")
    if args.eval_strategy != "no" and args.sources["do_eval"] == DEFAULT:
        found["do_eval"] = (True, "eval_strategy")
    metric = args.metric_for_best_model
    readers = {"lr_scheduler_type": "reduce_lr_on_plateau", "load_best_model_at_end": True, "save_strategy": "best"}
    reader = next((name for name, value in readers.items() if getattr(args, name, None) == value), None)
    if reader is not None and metric is None and args.eval_strategy != "no":
        metric = "loss"
        found["metric_for_best_model"] = (metric, reader)
    if metric is not None and args.greater_is_better is None and names.greater_is_better(metric) is not None:
        found["greater_is_better"] = (names.greater_is_better(metric), "metric_for_best_model")
    hows = [name for name in COMPILE_OPTIONS if getattr(args, name) is not None]
    if hows and args.sources["torch_compile"] == DEFAULT:
        found["torch_compile"] = (True, hows[0])
    return found | _precision_of_the_launcher(args)


def _precision_of_the_launcher(args: TrainingArguments) -> dict[str, tuple[object, str]]:
    """Gives the number format that `accelerate launch` was told, unless the settings say one."""
    wanted = os.environ.get(LAUNCHED_PRECISION, "")
    if wanted not in ("bf16", "fp16") or any(args.sources[name] != DEFAULT for name in ("bf16", "fp16")):
        return {}
    return {wanted: (True, f"environment {LAUNCHED_PRECISION}")}


def core_contradictions(args: TrainingArguments) -> Iterator[str]:
    """Gives whole sentences on options of the core that cannot be meant together."""
    for check in CHECKS:
        yield from check(args)


def _tell(args: TrainingArguments, name: str, what: str, remedy: str) -> str:
    return problem(name, what, Given(getattr(args, name), args.sources[name]), remedy)


def _interval_of_evaluation(args: TrainingArguments) -> Iterator[str]:
    if args.eval_strategy == "steps" and args.eval_steps is None:
        yield _tell(args, "eval_steps", "is needed with eval_strategy='steps'", "Set eval_steps or logging_steps.")


def _evaluation_that_is_read(args: TrainingArguments) -> Iterator[str]:
    if args.eval_strategy != "no":
        return
    if args.lr_scheduler_type == "reduce_lr_on_plateau":
        yield _tell(args, "lr_scheduler_type", "needs evaluations, and there are none", "Set eval_strategy.")
    elif args.metric_for_best_model is not None and not args.eval_on_start:
        yield _tell(args, "metric_for_best_model", "needs evaluations, and there are none", "Set eval_strategy.")


def _direction_of_metric(args: TrainingArguments) -> Iterator[str]:
    if args.metric_for_best_model is not None and args.greater_is_better is None:
        what = f"is needed, because the name {args.metric_for_best_model!r} does not tell whether more is better"
        yield _tell(args, "greater_is_better", what, "Set it to True or False.")


def _one_number_format(args: TrainingArguments) -> Iterator[str]:
    for half, other in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if getattr(args, half) and getattr(args, other):
            yield _tell(args, other, f"contradicts {half}=True", "Keep one of the two.")


def _launched_precision(args: TrainingArguments) -> Iterator[str]:
    wanted = os.environ.get(LAUNCHED_PRECISION, "no")
    if wanted not in ("no", "bf16", "fp16"):
        source = f"environment {LAUNCHED_PRECISION}"
        yield problem("mixed_precision", "is not offered", Given(wanted, source), "Launch with no, bf16 or fp16.")


def _compilation(args: TrainingArguments) -> Iterator[str]:
    for name in COMPILE_OPTIONS:
        if getattr(args, name) is not None and not args.torch_compile:
            yield _tell(args, name, "has no effect with torch_compile=False", "Set torch_compile=True.")


def _warmup(args: TrainingArguments) -> Iterator[str]:
    if args.warmup_steps and args.warmup_ratio:
        what = f"is given together with warmup_steps={args.warmup_steps}"
        yield _tell(args, "warmup_ratio", what, "Keep one of the two.")


def _workers(args: TrainingArguments) -> Iterator[str]:
    if args.dataloader_num_workers:
        return
    for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"):
        if getattr(args, name):
            yield _tell(args, name, "has no effect without workers", "Set dataloader_num_workers to 1 or more.")


def _checkpointing_of_activations(args: TrainingArguments) -> Iterator[str]:
    if args.activation_checkpointing_kwargs and not args.activation_checkpointing:
        what, remedy = "has no effect with activation_checkpointing=False", "Set activation_checkpointing=True."
        yield _tell(args, "activation_checkpointing_kwargs", what, remedy)


def _static_graph(args: TrainingArguments) -> Iterator[str]:
    if args.ddp_static_graph and args.gradient_accumulation_steps > 1:
        what = f"does not work with gradient_accumulation_steps={args.gradient_accumulation_steps}"
        yield _tell(args, "ddp_static_graph", what, "Leave it out, or take each batch in one piece.")


CHECKS: Final[tuple[Callable[[TrainingArguments], Iterator[str]], ...]] = (
    _interval_of_evaluation,
    _evaluation_that_is_read,
    _direction_of_metric,
    _one_number_format,
    _launched_precision,
    _compilation,
    _warmup,
    _workers,
    _checkpointing_of_activations,
    _static_graph,
)
