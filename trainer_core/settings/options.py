"""The options of the core, in groups; each group is a mixin of `TrainingArguments`.

A line under a field says its unit and what `None` means; it is also what `--help` and the JSON schema show.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from trainer_core.settings import names
from trainer_core.settings.change import Change
from trainer_core.settings.changes import CHANGES
from trainer_core.settings.section import Interval, StepCount

OptimizerName = Literal["adamw_torch_fused", "adamw_torch", "sgd", "adagrad", "rmsprop", "adafactor"]
ScheduleName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
SamplingStrategy = Literal["random", "sequential", "group_by_length"]


def _refusing(table: Mapping[str, tuple[str, str]]) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(value, str) and value in table:
            reason, remedy = table[value]
            raise ValueError(f"{value} {reason}. {remedy}")
        return value

    return BeforeValidator(check)


def _signals(names: list[str]) -> list[str]:
    """Refuses what is no signal, and those that no process can serve."""
    for name in names:
        if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
            raise ValueError(f"{name!r} is no signal that can be served. Use for example 'SIGTERM' or 'SIGUSR2'.")
    return names


def _mapping(nothing: Callable[[], object]) -> BeforeValidator:
    """Reads a mapping from JSON text, and what `None` stands for."""

    def read(value: object) -> object:
        if value is None:
            return nothing()
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            return value

    return BeforeValidator(read)


def _path_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]


def _counting(value: object) -> object:
    """Reads the original's True and False."""
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        value = value.lower() == "true"
    return ("all" if value else "no") if isinstance(value, bool) else value


def _all_steps(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("must be -1 or at least 1. Use -1 to train for num_train_epochs")
    return value


class Options(BaseModel):
    """What all groups share: frozen, strict about types, no unknown names, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,
    )
    group: ClassVar[str] = "options"
    """The name of the group in files, in nested keywords and in `--help`."""
    when_changed: ClassVar[Mapping[str, Change]] = CHANGES
    """Field -> what another value means for a run that is resumed; a field that is not here is said."""


class CoreOptions(Options):
    """How long to train, from which seed, and what to do with a loss that is not finite."""

    group: ClassVar[str] = "core"

    output_dir: Annotated[str, BeforeValidator(_path_text), Field(min_length=1)] = "trainer_output"
    """Folder for everything that the run writes."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches a step."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training data; may be fractional."""
    max_steps: Annotated[int, AfterValidator(_all_steps)] = -1
    """Steps to train for, over as many epochs as that takes; -1 leaves it to num_train_epochs."""
    seed: Seed = 42
    """Where all random numbers of the run start."""
    full_determinism: bool = False
    """Whether torch uses deterministic algorithms only; slower."""
    label_smoothing_factor: Share = 0.0
    """Share of a target's weight that is spread over all classes; 0 for none."""
    nan_policy: Literal["stop", "skip", "ignore"] = "stop"
    """What a NaN or infinite loss or gradient does: ends the run, skips the step, or nothing."""
    stop_signals: Annotated[list[str], AfterValidator(_signals)] = Field(
        default_factory=lambda: [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    )
    """Signals of the operating system that end the run in order, saved, to go on when it is resumed."""
    average_tokens_across_devices: bool = True
    """Whether targets are counted over all ranks, so that each weighs the same in the loss."""
    include_num_input_tokens_seen: Annotated[Literal["no", "all", "non_padding"], BeforeValidator(_counting)] = "no"
    """Which elements of the model's main input are counted as tokens in every logged row; True is "all"."""
    include_tokens_per_second: bool = False
    """Whether the closing row has train_tokens_per_second; counts all tokens unless told to leave out padding."""
    skip_memory_metrics: bool = True
    """Whether metrics leave out how much memory the constructor, training and evaluations took."""
    torch_empty_cache_steps: Count | None = None
    """Steps between two releases of the accelerator's cached memory; None for never."""
    block_plugins: list[str] = Field(default_factory=list)
    """Names of installed plugins that are not even imported."""
    do_train: bool = False
    """For your script to read, whether to train; nothing here reads it."""
    do_eval: bool = False
    """For your script to read, whether to evaluate; follows from eval_strategy where it is left out."""
    do_predict: bool = False
    """For your script to read, whether to predict; nothing here reads it."""

    @property
    def counts_tokens(self) -> bool:
        """Whether the run counts tokens."""
        return self.include_num_input_tokens_seen != "no" or self.include_tokens_per_second


class OptimizerOptions(Options):
    """The optimizer, its learning rate and its schedule."""

    group: ClassVar[str] = "optimizer"

    learning_rate: NotNegative = 5e-5
    """Highest learning rate of the schedule."""
    weight_decay: NotNegative = 0.0
    """Decay a step, of all parameters but biases and those of norm layers."""
    adam_beta1: Beta = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: Beta = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: NotNegative = 1e-8
    """Added to Adam's denominator."""
    max_grad_norm: NotNegative | None = 1.0
    """Norm that gradients are clipped to; 0 or None for no clipping."""
    lr_scheduler_type: Annotated[ScheduleName, _refusing(names.REFUSED_SCHEDULES)] = "linear"
    """How the learning rate changes with steps."""
    lr_scheduler_kwargs: Annotated[dict[str, Any], _mapping(dict)] = Field(default_factory=dict)
    """What the schedule takes besides, as a mapping or as JSON text."""
    warmup_steps: StepCount = 0
    """Steps over which the learning rate rises from 0; below 1 a share of all steps."""
    warmup_ratio: Share = 0.0
    """Share of all steps over which the learning rate rises from 0."""
    optim: Annotated[OptimizerName, _refusing(names.REFUSED_OPTIMIZERS)] = "adamw_torch_fused"
    """The optimizer."""
    optim_args: str | None = None
    """What the optimizer takes besides, as "name=value,name=value"; None for nothing."""


class DataOptions(Options):
    """Batches, their order, and the processes that load them."""

    group: ClassVar[str] = "data"

    per_device_train_batch_size: Count = 8
    """Samples a training micro-batch on each rank."""
    per_device_eval_batch_size: Count = 8
    """Samples an evaluation or prediction batch on each rank."""
    data_seed: Seed | None = None
    """Where the order of the training data starts; None for seed."""
    dataloader_drop_last: bool = False
    """Whether a last, short training batch is left out; evaluation and prediction always take every row."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load data; 0 loads in the main process."""
    remove_unused_columns: bool = True
    """Whether columns that the model's forward does not take are dropped."""
    label_names: list[str] | None = None
    """Keys of a batch that are labels; None for those that forward names so."""
    train_sampling_strategy: Annotated[SamplingStrategy, _refusing(names.REFUSED_SAMPLING)] = "random"
    """Order of the training data: shuffled each epoch, as it is, or samples of similar length together."""
    length_column_name: str = "length"
    """Column that holds lengths for group_by_length; without it they are counted."""
    dataloader_pin_memory: bool = True
    """Whether batches are put into pinned memory; acts with an accelerator only."""
    dataloader_persistent_workers: bool = False
    """Whether workers live on between epochs."""
    dataloader_prefetch_factor: Count | None = None
    """Batches each worker loads ahead; None for torch's choice."""
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    """How workers are started; None for the system's way."""
    auto_find_batch_size: bool = False
    """Whether a micro-batch that does not fit into memory is split; the step stays the same."""


class EvaluationOptions(Options):
    """When to evaluate, and what evaluation gives."""

    group: ClassVar[str] = "evaluation"

    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to evaluate during training."""
    eval_steps: Interval | None = None
    """Steps between two evaluations, below 1 a share of all steps; None for logging_steps."""
    eval_delay: NotNegative = 0
    """Steps or epochs (as eval_strategy says) before the first evaluation."""
    eval_on_start: bool = False
    """Whether to evaluate once before the first step."""
    prediction_loss_only: bool = False
    """Whether evaluation gives the loss alone, and keeps no predictions."""
    eval_accumulation_steps: Count | None = None
    """Batches after which predictions move to main memory; None for the end of the evaluation."""
    eval_do_concat_batches: bool = True
    """Whether predictions are joined into one array; else they stay a list of batches."""
    include_for_metrics: list[Literal["inputs", "loss"]] = Field(default_factory=list)
    """What compute_metrics gets besides predictions and labels."""
    batch_eval_metrics: bool = False
    """Whether compute_metrics is called on each batch, and with compute_result=True on the last."""
    metric_for_best_model: Annotated[str, Field(min_length=1)] | None = None
    """Metric, with or without "eval_", by which models are compared; None for none, or the loss where one is needed."""
    greater_is_better: bool | None = None
    """Whether more of that metric is better; None for what its name says."""


class PrecisionOptions(Options):
    """Number formats, compilation, and memory traded for time."""

    group: ClassVar[str] = "precision"

    bf16: bool = False
    """Whether forward runs under bfloat16 autocast."""
    fp16: bool = False
    """Whether forward runs under float16 autocast with a scaled loss."""
    bf16_full_eval: bool = False
    """Whether the model itself is bfloat16 while it evaluates outside training."""
    fp16_full_eval: bool = False
    """Whether the model itself is float16 while it evaluates outside training."""
    tf32: bool | None = None
    """Whether float32 products may use TF32; None for torch's setting."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in backward instead of kept."""
    activation_checkpointing_kwargs: Annotated[dict[str, Any] | None, _mapping(lambda: None)] = None
    """What activation checkpointing takes besides, as a mapping or as JSON text; None for nothing."""
    torch_compile: bool = False
    """Whether the model is compiled; naming a backend or a mode turns it on."""
    torch_compile_backend: str | None = None
    """Backend of torch.compile; None for torch's choice."""
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = (
        None
    )
    """Mode of torch.compile; None for torch's choice."""


class DistributedOptions(Options):
    """Devices, and how ranks talk."""

    group: ClassVar[str] = "distributed"

    use_cpu: bool = False
    """Whether to stay on the CPU where there is an accelerator."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl"] | None = None
    """How ranks talk; None for what suits the device."""
    ddp_find_unused_parameters: bool | None = None
    """Whether to look for parameters without a gradient in each backward; None for no."""
    ddp_bucket_cap_mb: Count | None = None
    """Megabytes of gradients sent at once; None for torch's choice."""
    ddp_broadcast_buffers: bool | None = None
    """Whether buffers are sent from rank 0 before each forward; None for torch's choice."""
    ddp_static_graph: bool | None = None
    """Whether the graph is the same in each step; None for no."""
    ddp_timeout: Count = 1800
    """Seconds that a rank waits in a collective for a rank that lives and does not come."""
    ddp_heartbeat_timeout: Count = 120
    """Seconds without a sign of life from a rank after which the others end; one that dies ends them at once."""
