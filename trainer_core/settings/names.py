"""Names of the original that are no fields here: other spellings, names of plugins, and what is refused and why.

A field of the core comes first, then what an installed plugin declares; these tables are asked after both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Alias:
    """Another spelling of a field of the core."""

    field: str
    write: Callable[[object], object] | None = None
    """What a value under this spelling means for the field; `None`: the same. Raises ValueError for a wrong one."""
    read: Callable[[object], object] | None = None
    """What the field's value reads as under this spelling; `None`: the same."""
    ignores_none: bool = False
    """Whether None, the original's default here, says nothing."""


def _flag(field: str, on: object, off: object) -> Alias:
    """Gives the alias for a yes-or-no option that became one choice of `field`."""

    def write(value: object) -> object:
        if not isinstance(value, bool):
            raise ValueError("must be true or false. Use True or False.")
        return on if value else off

    def read(value: object) -> object:
        return set(on) <= set(value) if isinstance(on, list) and isinstance(value, list) else value == on

    return Alias(field, write, read)


ALIASES: Final[Mapping[str, Alias]] = {
    "evaluation_strategy": Alias("eval_strategy"),
    "no_cuda": Alias("use_cpu"),
    "gradient_checkpointing": Alias("activation_checkpointing"),
    "gradient_checkpointing_kwargs": Alias("activation_checkpointing_kwargs"),
    "per_gpu_train_batch_size": Alias("per_device_train_batch_size", ignores_none=True),
    "per_gpu_eval_batch_size": Alias("per_device_eval_batch_size", ignores_none=True),
    "include_inputs_for_metrics": _flag("include_for_metrics", ["inputs"], []),
    "group_by_length": _flag("train_sampling_strategy", "group_by_length", "random"),
    "adafactor": _flag("optim", "adafactor", "adamw_torch_fused"),
}

_LOGGING = "logging"
_CHECKPOINTING = "checkpointing"
_HUB = "hub_push"
_TRACKERS = "trackers"

PLUGIN_OF: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "log_level",
            "log_level_replica",
            "log_on_each_node",
            "get_process_log_level",
            "logging_strategy",
            "logging_first_step",
            "logging_steps",
        ),
        _LOGGING,
    ),
    **dict.fromkeys(
        (
            "save_strategy",
            "save_steps",
            "save_total_limit",
            "save_only_model",
            "load_best_model_at_end",
            "resume_from_checkpoint",
            "on_invalid_checkpoint",
            "on_save_error",
            "checkpoint_async",
            "overwrite_output_dir",
        ),
        _CHECKPOINTING,
    ),
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_model_id",
            "hub_strategy",
            "hug_strategy",
            "hub_token",
            "hub_private_repo",
            "hub_always_push",
            "hub_revision",
            "push_to_hub_model_id",
            "push_to_hub_organization",
            "push_to_hub_token",
        ),
        _HUB,
    ),
    **dict.fromkeys(
        (
            "report_to",
            "run_name",
            "logging_dir",
            "project",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
        ),
        _TRACKERS,
    ),
    "neftune_noise_alpha": "neftune",
    "early_stopping_patience": "early_stopping",
    "early_stopping_threshold": "early_stopping",
    "max_time": "stop_at",
    "digest_steps": "digests",
    "digest_parameter_steps": "digests",
    "disable_tqdm": "console",
}
"""Flat name -> the plugin that brings it."""

NAME_OF: Final[Mapping[str, str]] = {"EarlyStoppingCallback": "early_stopping", "BestRun": "tuning"}
"""Public name of `trainer_core` that one of our plugins offers -> the plugin."""

PLUGIN_OF_METHOD: Final[Mapping[str, str]] = {
    "push_to_hub": _HUB,
    "create_model_card": _HUB,
    "hyperparameter_search": "tuning",
    "replay": "replay",
}
"""Method of Trainer -> the plugin that does its work."""

OUR_PLUGINS: Final = frozenset({*PLUGIN_OF.values(), *NAME_OF.values(), *PLUGIN_OF_METHOD.values()})

COMMAND_OF: Final[Mapping[str, str]] = {"checkpoints": _CHECKPOINTING, "push": _HUB, "replay": "replay"}
"""Command of `python -m trainer_core` that one of our plugins offers -> the plugin."""


OFF: Final[Mapping[str, tuple[object, ...]]] = {
    "report_to": (None, "none", [], ["none"]),
    "push_to_hub": (False,),
    "neftune_noise_alpha": (None,),
    "overwrite_output_dir": (False,),
}
"""Options of plugins that need not be installed, with the values by which a script says that it does not want them."""


def distribution_of(plugin: str) -> str:
    """Gives the distribution to install for one of our plugins."""
    return _DISTRIBUTION_OF.get(plugin, f"trainer-core-{plugin.replace('_', '-')}")


_DISTRIBUTION_OF: Final = {
    "console": "trainer-core",
    "stop_at": "trainer-core-early-stopping",
    "digests": "trainer-core-replay",
}


TRAINER_ARGUMENTS: Final[Mapping[str, str]] = {
    name: name
    for name in (
        (
            "model",
            "args",
            "data_collator",
            "train_dataset",
            "eval_dataset",
            "tokenizer",
            "processing_class",
            "model_init",
            "compute_loss_func",
            "compute_metrics",
            "callbacks",
            "optimizers",
            "plugins",
            "preprocess_logits_for_metrics",
        )
    )
} | {"callback": "callbacks", "plugin": "plugins"}
"""Name that belongs to Trainer -> how it is spelled there."""

_LATER = "is not offered yet"
_FSDP = (_LATER, "Train with one process a device (torchrun or accelerate launch); models are replicated.")
_GENERATION = "Override prediction_step and call model.generate there, with what model.generation_config holds."
_DELIVERY = ("is not offered: each rank reads its own share of the data", "Leave it out.")

REFUSED: Final[Mapping[str, tuple[str, str]]] = {
    # core
    "past_index": ("is gone: outputs are never fed back as inputs", "Keep such memory in the model's forward."),
    "use_cache": ("is the model's: its configuration is never written", "Set model.config.use_cache."),
    # optimizer
    "optim_target_modules": (
        "needs an optimizer of another package",
        "Build it over the modules you want and pass optimizers=(optimizer, None) to Trainer.",
    ),
    # data
    "dispatch_batches": _DELIVERY,
    "split_batches": _DELIVERY,
    "dataloader_in_order": (
        "is not offered: batches out of order could not be resumed exactly",
        "Leave it out, or raise dataloader_num_workers.",
    ),
    "ignore_data_skip": (
        "is not needed: resuming restores the position in the data without loading what came before",
        "Leave it out.",
    ),
    # eval
    "jit_mode_eval": ("is gone: evaluation runs the model that is trained", "Use torch_compile=True."),
    "use_legacy_prediction_loop": ("is gone: there is one evaluation loop", "Leave it out."),
    "eval_use_gather_object": (
        "is not needed: outputs that are no tensors are gathered as they are",
        "Leave it out.",
    ),
    # precision
    "fp16_opt_level": ("belonged to Apex, which is gone", "Use fp16=True or bf16=True."),
    "half_precision_backend": ("is gone: torch's autocast is the only one", "Use fp16=True or bf16=True."),
    "fp16_backend": ("is gone: torch's autocast is the only one", "Use fp16=True or bf16=True."),
    "torchdynamo": ("is gone", "Use torch_compile_backend."),
    "use_liger_kernel": (_LATER, "Patch the model with Liger's own functions before you hand it over."),
    "liger_kernel_config": (_LATER, "Patch the model with Liger's own functions before you hand it over."),
    # distributed
    "fsdp": _FSDP,
    "fsdp_config": _FSDP,
    "fsdp_min_num_params": _FSDP,
    "fsdp_transformer_layer_cls_to_wrap": _FSDP,
    "deepspeed": _FSDP,
    "parallelism_config": _FSDP,
    "accelerator_config": (_LATER, "Use the options of the groups data and distributed."),
    "tpu_num_cores": (_LATER, "Train on CPU or on a GPU."),
    "tpu_metrics_debug": (_LATER, "Train on CPU or on a GPU."),
    "local_rank": ("is set by the launcher", "Start the script with torchrun or accelerate launch."),
    "mp_parameters": ("is gone: nothing reads it", "Leave it out."),
    "use_ipex": ("is gone: torch holds what the extension brought", "Use bf16=True."),
    "use_mps_device": ("is not needed: an Apple GPU is used when there is one", "Leave it out, or set use_cpu."),
    # saving, logging and the rest
    "save_safetensors": ("is not needed: weights are always saved as safetensors", "Leave it out."),
    "save_on_each_node": (
        "is not offered: all ranks write into one checkpoint, which is whole or not there",
        "Put output_dir on storage that all nodes share.",
    ),
    "enable_jit_checkpoint": ("is not needed: SIGTERM and SIGINT always save before the run ends", "Leave it out."),
    "restore_callback_states_from_checkpoint": (
        "is not needed: the state of plugins and callbacks is always saved and restored",
        "Leave it out.",
    ),
    "logging_nan_inf_filter": ("is gone: a loss is reported as what it is", "Use nan_policy."),
    "debug": (_LATER, "Use torch.autograd.set_detect_anomaly(True)."),
    "ray_scope": ("is Ray's", "Set the environment variable RAY_SCOPE."),
    "sortish_sampler": ("never did anything", 'Use train_sampling_strategy="group_by_length".'),
    "predict_with_generate": (_LATER, _GENERATION),
    "generation_max_length": (_LATER, _GENERATION),
    "generation_num_beams": (_LATER, _GENERATION),
    "generation_config": (_LATER, _GENERATION),
}
"""Name -> why it is refused, and what to use instead: nothing is accepted and ignored.

A value that asks for what is done anyway is no mistake: see `accepted`.
"""

_OWN_OPTIMIZER = "Build it yourself and pass optimizers=(optimizer, None) to Trainer, or override create_optimizer."


def _needs(package: str, *names: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(names, (f"needs {package}, which is not a part of this library", _OWN_OPTIMIZER))


REFUSED_OPTIMIZERS: Final[Mapping[str, tuple[str, str]]] = {
    "adamw_hf": ("is gone", "Use adamw_torch."),
    **_needs("Apex", "adamw_apex_fused"),
    **_needs("torch_xla", "adamw_torch_xla"),
    **_needs("torch_npu", "adamw_torch_npu_fused"),
    **_needs("torchdistx", "adamw_anyprecision"),
    **_needs("torchao", "adamw_torch_4bit", "adamw_torch_8bit"),
    **_needs("bitsandbytes", "ademamix", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit"),
    **_needs("bitsandbytes", "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    **_needs("bitsandbytes", "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit"),
    **_needs("bitsandbytes", "rmsprop_bnb_32bit"),
    **_needs("galore-torch", "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
    **_needs("galore-torch", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
    **_needs("lomo-optim", "lomo", "adalomo"),
    **_needs("grokadamw", "grokadamw"),
    **_needs("schedulefree", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"),
    **_needs("apollo-torch", "apollo_adamw", "apollo_adamw_layerwise"),
    **_needs("torch-optimi", "stable_adamw"),
}
"""Value of `optim` -> why it is refused, and what to use instead."""

REFUSED_SCHEDULES: Final[Mapping[str, tuple[str, str]]] = {
    "greedy": (
        "is not offered: it follows the training loss",
        "Use reduce_lr_on_plateau, or pass optimizers=(optimizer, lr_scheduler) to Trainer.",
    ),
}
"""Value of `lr_scheduler_type` -> why it is refused, and what to use instead."""

REFUSED_SAMPLING: Final[Mapping[str, tuple[str, str]]] = {
    "batch_rebalance": ("is not offered: it moves samples between ranks", "Use group_by_length."),
}
"""Value of `train_sampling_strategy` -> why it is refused, and what to use instead."""

METRIC_DIRECTIONS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("accuracy", "f1", "precision", "recall", "auc", "bleu", "mcc", "r2"), True),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum", "rouge"), True),
    **dict.fromkeys(("perplexity", "wer", "cer", "mse", "mae", "rmse"), False),
}
"""Metric -> whether more of it is better."""


def greater_is_better(metric: str) -> bool | None:
    """Whether more of `metric` (with or without `eval_`) is better; `None` when its name does not tell.

    The last part tells where the whole name does not: `eval_french_accuracy` is an accuracy.
    """
    name = metric.removeprefix("eval_")
    if name.endswith("loss"):
        return False
    return METRIC_DIRECTIONS.get(name, METRIC_DIRECTIONS.get(name.rpartition("_")[2]))
