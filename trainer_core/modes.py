"""A model between training and evaluation, and what is known of its inputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer_core.data.reading import is_shared_out
from trainer_core.errors import DataError, SettingsError, did_you_mean

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments
    from trainer_core.trainer import Trainer


@contextmanager
def evaluation_model(trainer: Trainer) -> Iterator[nn.Module]:
    """Gives the model to evaluate, in evaluation mode; modes go back to what they were.

    Outside training it is placed on the device and, with `bf16_full_eval` or `fp16_full_eval`, a copy in that type; the
    model itself keeps its weights to the bit. All ranks evaluate with the main rank's buffers.
    """
    model = trainer.model_wrapped
    if isinstance(model, DistributedDataParallel):
        model = model.module  # DDP's forward waits for all ranks, which may have different numbers of batches
    if not trainer.is_in_train:
        model = trainer.model
        if trainer.ranks.device.type != "cpu":
            model.to(trainer.ranks.device)
        half = torch.bfloat16 if trainer.args.bf16_full_eval else torch.float16 if trainer.args.fp16_full_eval else None
        if half is not None:
            model = _half_copy(model, half, trainer.label_names)
    if trainer.args.ddp_broadcast_buffers is not False:
        trainer.ranks.send_from_main(model.buffers())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def _half_copy(model: nn.Module, dtype: torch.dtype, labels: tuple[str, ...]) -> nn.Module:
    """Gives a copy of `model` in `dtype` that takes its floating inputs, but labels, in that type too."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def cast_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = {name: value if name in labels else cast(value) for name, value in kwargs.items()}
        return tuple(map(cast, args)), named

    half = copy.deepcopy(model).to(dtype)
    half.register_forward_pre_hook(cast_inputs, with_kwargs=True)
    return half


def autocast_type(args: TrainingArguments) -> torch.dtype | None:
    """Gives the type of autocast, or None for full precision."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else None


def label_names(trainer: Trainer) -> tuple[str, ...]:
    """Gives the columns that are labels: those of the settings, else what forward calls labels, else "labels"."""
    if trainer.args.label_names is not None:
        return tuple(trainer.args.label_names)
    parameters = inspect.signature(trainer.model.forward).parameters
    found = tuple(name for name in parameters if "label" in name or name in ("start_positions", "end_positions"))
    return found or ("labels",)


def main_input(model: nn.Module, inputs: Any) -> Any:
    """Gives the main input of a batch: what the model calls so, `input_ids`, or the first."""
    if isinstance(inputs, Mapping):
        name = getattr(model, "main_input_name", "input_ids")
        return inputs[name] if name in inputs else next(iter(inputs.values()))
    return inputs[0] if isinstance(inputs, tuple | list) else inputs


def keys_to_ignore(trainer: Trainer) -> list[str]:
    """Gives the outputs to leave out of predictions: what `train` was told, else what a transformers model wants."""
    if trainer.is_in_train and trainer.ignore_keys_for_eval is not None:
        return list(trainer.ignore_keys_for_eval)
    config = getattr(trainer.model, "config", None)
    usual = () if config is None else ("cache",)  # transformers' configurations say nothing of it since 5.24
    return list(getattr(config, "keys_to_ignore_at_inference", usual))


def refuse_unshared(trainer: Trainer, loader: Iterable[Any], method: str) -> None:
    """Raises DataError for a user's loader that every one of several ranks would read whole."""
    if trainer.ranks.world_size > 1 and not is_shared_out(loader):
        raise DataError(
            f"{method}: gives a loader that each of {trainer.ranks.world_size} ranks would read whole, got "
            f"{type(loader).__name__}. Give it a torch DistributedSampler, or return self.accelerator.prepare(loader)."
        )


def eval_datasets(trainer: Trainer, wanted: Any) -> Any:
    """Gives the dataset, or mapping of datasets, that an evaluation is about.

    Raises:
        SettingsError: there is none, or none of that name.
    """
    own = trainer.eval_dataset
    if isinstance(wanted, str):
        if not isinstance(own, Mapping) or wanted not in own:
            names = list(own) if isinstance(own, Mapping) else []
            raise SettingsError(
                [
                    f"eval_dataset: there is none called {wanted!r}.{did_you_mean(wanted, names)} "
                    f"Pass a dataset, or one of the names {names}."
                ]
            )
        return own[wanted]
    dataset = wanted if wanted is not None else own
    is_missing = dataset is None or (isinstance(dataset, Mapping) and not dataset)
    if is_missing and not trainer.overrides("get_eval_dataloader"):
        raise SettingsError(["eval_dataset: is needed to evaluate. Pass one to Trainer or to evaluate()."])
    return dataset
