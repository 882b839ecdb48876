"""Options of the original that nothing here reads, with the values that ask for what is done anyway.

Scripts pass defaults of the original explicitly. Such a value is taken, and the first one of its option is what the
option reads as; any other value is refused with the reason in `names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer_core.settings import names
from trainer_core.settings.conversion import Kind, readings

ACCEPTED: Final[Mapping[str, tuple[object, ...]]] = {
    # core
    "past_index": (-1,),
    # optimizer
    "optim_target_modules": (None,),
    # data
    "dispatch_batches": (False, None),
    "split_batches": (False, None),
    "dataloader_in_order": (True,),
    "ignore_data_skip": (False,),
    # eval
    "jit_mode_eval": (False,),
    "use_legacy_prediction_loop": (False,),
    "eval_use_gather_object": (False,),
    # precision
    "half_precision_backend": ("auto",),
    "fp16_backend": ("auto",),
    "torchdynamo": (None,),
    "use_liger_kernel": (False,),
    "liger_kernel_config": (None,),
    # distributed
    "fsdp": (None, "", [], False),
    "fsdp_config": (None, {}),
    "fsdp_min_num_params": (0,),
    "fsdp_transformer_layer_cls_to_wrap": (None,),
    "deepspeed": (None,),
    "parallelism_config": (None,),
    "accelerator_config": (None,),
    "tpu_num_cores": (None,),
    "tpu_metrics_debug": (False,),
    "mp_parameters": ("",),
    "use_ipex": (False,),
    "use_mps_device": (False,),
    # saving, logging and the rest
    "save_safetensors": (True,),
    "save_on_each_node": (False,),
    "enable_jit_checkpoint": (True,),
    "restore_callback_states_from_checkpoint": (True,),
    "logging_nan_inf_filter": (False,),
    "debug": ("", [], None),
    "ray_scope": ("last",),
    "sortish_sampler": (False,),
    "predict_with_generate": (False,),
    "generation_max_length": (None,),
    "generation_num_beams": (None,),
    "generation_config": (None,),
}
"""Refused name -> the values of it that are no mistake."""


def values_of(name: str) -> tuple[object, ...]:
    """Gives the values of an option without a field that are no mistake; the first is what it reads as."""
    return names.OFF.get(name, ACCEPTED.get(name, ()))


def is_accepted(name: str, value: object, kind: Kind) -> bool:
    """Tells whether `value` asks for what is done anyway; types count: 0 is not False."""
    return any(
        type(reading) is type(taken) and reading == taken
        for reading in readings(value, kind)
        for taken in values_of(name)
    )
