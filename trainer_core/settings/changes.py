"""What another value of each option of the core means for a run that is resumed: one table, and its rules.

Refused is what would bring the data in another order, break what the checkpoint's state stands for, or end the run
unseen. Batches of another size are said, for the place in the data is another module's; what an optimizer holds in its
state goes on as the checkpoint has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from trainer_core.cadence import interval
from trainer_core.settings.change import Change, Side


def _length(before: Side, now: Side) -> str:
    """Says what becomes of the length of a run, and with it of its schedule."""
    stopped_by = before.counters.get("stopped_by")
    if stopped_by is not None:
        return f"{stopped_by['by']} ended the run, which stays ended"
    if now.max_steps < before.done:
        return f"{before.done} updates are done, and the run would have {now.max_steps}"
    if now.max_steps == before.done:
        return f"all {before.done} updates are done, and the run ends"
    if now.max_steps == before.max_steps:
        return f"the run ends at update {now.max_steps} as before"
    return f"the run ends at update {now.max_steps} instead of {before.max_steps}, and the schedule with it"


def _is_over(before: Side, now: Side) -> bool:
    """Tells whether a run would have fewer updates in all than it has behind it."""
    return before.counters.get("stopped_by") is None and now.max_steps < before.done


def _is_cut_off(before: Side, now: Side) -> bool:
    """Tells the same of a run that was not done; one that is stays so, however its batches are counted."""
    return _is_over(before, now) and before.done < before.max_steps


def _evaluation_interval(side: Side) -> int:
    return interval(side.values["eval_steps"], side.max_steps) if side.values["eval_strategy"] == "steps" else 0


def _warmup(side: Side) -> int:
    steps, share = side.values["warmup_steps"], side.values["warmup_ratio"]
    return int(steps) if steps >= 1 else math.ceil(side.max_steps * (steps or share))


def _data_seed(side: Side) -> object:
    own = side.values["data_seed"]
    return side.values["seed"] if own is None else own


def _metric(side: Side) -> str:
    return str(side.values["metric_for_best_model"] or "").removeprefix("eval_")


def _has_best(before: Side, now: Side) -> bool:
    return before.counters.get("best_metric") is not None


def _sorts_by_length(before: Side, now: Side) -> bool:
    return bool(before.values["train_sampling_strategy"] == "group_by_length")


_FREE = Change.free()
_SAID = Change.said()
_LENGTH = Change.refused(_length, when=_is_over, meaning=lambda side: side.max_steps)
_BATCH = Change.refused(_length, when=_is_cut_off)
_OF_CHECKPOINT = Change.said("the run goes on with that of its checkpoint, start anew to change it")
_WARMUP = Change.said("the schedule goes on as if it had been so from the start", meaning=_warmup)
_ORDER = "the rest of the epoch would be in another order, with samples lost and doubled"
_BEST = "the best model so far was chosen by another rule"
_PRECISION = "the run would go on in another number format"

CHANGES: Final[Mapping[str, Change]] = {
    # core
    "output_dir": _FREE,
    "gradient_accumulation_steps": _BATCH,
    "num_train_epochs": _LENGTH,
    "max_steps": _LENGTH,
    "seed": Change.refused("the rest of the run would draw other random numbers"),
    "full_determinism": _SAID,
    "label_smoothing_factor": _SAID,
    "nan_policy": _SAID,
    "stop_signals": _FREE,
    "average_tokens_across_devices": _SAID,
    "include_num_input_tokens_seen": Change.said("tokens are counted so from here on, those so far are as they are"),
    "include_tokens_per_second": _FREE,
    "skip_memory_metrics": _FREE,
    "torch_empty_cache_steps": _FREE,
    "block_plugins": _FREE,  # what becomes of a plugin that is blocked is told of the plugin
    "do_train": _FREE,
    "do_eval": _FREE,
    "do_predict": _FREE,
    # optimizer
    "learning_rate": _OF_CHECKPOINT,
    "weight_decay": _OF_CHECKPOINT,
    "adam_beta1": _OF_CHECKPOINT,
    "adam_beta2": _OF_CHECKPOINT,
    "adam_epsilon": _OF_CHECKPOINT,
    "max_grad_norm": _SAID,
    "lr_scheduler_type": Change.said("the rate follows the new curve from here on, at the step where it is"),
    "lr_scheduler_kwargs": Change.said("the rate follows the new curve from here on, at the step where it is"),
    "warmup_steps": _WARMUP,
    "warmup_ratio": _WARMUP,
    "optim": _OF_CHECKPOINT,  # where its state does not fit it is refused, whoever made it: see snapshot
    "optim_args": _OF_CHECKPOINT,
    # data
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _FREE,
    "data_seed": Change.refused(_ORDER, meaning=_data_seed),
    "dataloader_drop_last": _BATCH,
    "dataloader_num_workers": _FREE,
    "remove_unused_columns": _SAID,
    "label_names": _SAID,
    "train_sampling_strategy": Change.refused(_ORDER),
    "length_column_name": Change.refused(_ORDER, when=_sorts_by_length),
    "dataloader_pin_memory": _FREE,
    "dataloader_persistent_workers": _FREE,
    "dataloader_prefetch_factor": _FREE,
    "dataloader_multiprocessing_context": _FREE,
    "auto_find_batch_size": _FREE,
    # evaluation
    "eval_strategy": _SAID,
    "eval_steps": Change.said(meaning=_evaluation_interval),
    "eval_delay": _SAID,
    "eval_on_start": _FREE,  # the start is over
    "prediction_loss_only": _SAID,
    "eval_accumulation_steps": _FREE,
    "eval_do_concat_batches": _SAID,
    "include_for_metrics": _SAID,
    "batch_eval_metrics": _SAID,
    "metric_for_best_model": Change.refused(_BEST, when=_has_best, meaning=_metric),
    "greater_is_better": Change.refused(_BEST, when=_has_best),
    # precision
    "bf16": Change.refused(_PRECISION),
    "fp16": Change.refused(_PRECISION),
    "bf16_full_eval": _FREE,
    "fp16_full_eval": _FREE,
    "tf32": _SAID,
    "activation_checkpointing": _FREE,
    "activation_checkpointing_kwargs": _FREE,
    "torch_compile": _SAID,
    "torch_compile_backend": _SAID,
    "torch_compile_mode": _SAID,
    # distributed
    "use_cpu": _SAID,
    "ddp_backend": _FREE,
    "ddp_find_unused_parameters": _FREE,
    "ddp_bucket_cap_mb": _FREE,
    "ddp_broadcast_buffers": _SAID,
    "ddp_static_graph": _FREE,
    "ddp_timeout": _FREE,
    "ddp_heartbeat_timeout": _FREE,
}
"""Field -> what another value of it means; a field that is not here is said."""
