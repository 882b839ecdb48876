"""What can be told of a run without asking anybody: its model, data, settings and versions."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core import mask_secrets
from trainer_core_hub_push.client import is_repo_id

if TYPE_CHECKING:
    from torch import nn

    from trainer_core import Trainer, TrainingArguments

_TASKS: Final[Mapping[str, str]] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "ForAudioClassification": "audio-classification",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "ForCTC": "automatic-speech-recognition",
}
"""End of the name of a model's class -> the Hub's word for what it does."""
_FILES: Final = ("arrow", "csv", "folder", "generator", "json", "pandas", "parquet", "spark", "sql", "text", "xml")
"""Ends of the names of builders that read anybody's files: they name no dataset."""
_NOT_TOLD: Final = frozenset({"output_dir", "block_plugins", "checkpointing.resume_from_checkpoint"})
"""Settings that say where and how the run was made, and nothing about the model."""
_NOT_TOLD_OF: Final = ("hub_push", "console", "logging")
_OUTCOMES: Final[Mapping[str, str]] = {
    "": "not finished",
    "completed": "completed",
    "interrupted": "interrupted, to go on later",
    "failed": "failed",
}
_LIBRARIES: Final = ("accelerate", "transformers", "peft", "datasets", "tokenizers")


@dataclass(frozen=True)
class Dataset:
    """A dataset: its name, its id on the Hub, its configuration and split, so far as they are known."""

    name: str
    id: str | None = None
    config: str | None = None
    split: str | None = None


def name_of(trainer: Trainer) -> str:
    """Gives the title of a model: the name of its repository, or of the run's folder."""
    repository = getattr(trainer.args, "hub_model_id", None)
    return str(repository or Path(trainer.args.output_dir).resolve().name).rpartition("/")[2]


def kind_of(model: nn.Module) -> str:
    """Gives the name of a model's class; of an adapter, that of the model it adapts."""
    return type(_inner(model)).__name__


def _inner(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator] # peft's


def library_of(model: nn.Module) -> str:
    """Gives the library that loads a model: the one whose `save_pretrained` writes it."""
    for kind in type(model).__mro__:
        if "save_pretrained" in vars(kind):
            library = kind.__module__.partition(".")[0]
            return "pytorch" if library in ("huggingface_hub", "__main__") else library.replace("_", "-")
    return "pytorch"


def is_adapter(model: nn.Module) -> bool:
    """Whether only what was added to a model is saved."""
    return hasattr(model, "peft_config")


def base_of(model: nn.Module) -> str | None:
    """Gives the repository of the model that training began with, where the model knows it."""
    config = next(iter(getattr(model, "peft_config", {}).values()), None)
    name = getattr(config, "base_model_name_or_path", None) or getattr(
        getattr(_inner(model), "config", None), "_name_or_path", None
    )
    if not isinstance(name, str) or Path(name).exists():
        return None
    return name if is_repo_id(name) or (name and is_repo_id(f"x/{name}")) else None


def tasks_of(model: nn.Module) -> list[str]:
    """Gives what a model does, where its class says so."""
    name = kind_of(model)
    return [task for end, task in _TASKS.items() if name.endswith(end)]


def datasets_of(trainer: Trainer) -> list[Dataset]:
    """Gives what the data says of itself, the evaluation's before the training's."""
    evaluated = trainer.eval_dataset
    if isinstance(evaluated, Mapping) and not hasattr(evaluated, "builder_name"):
        evaluated = next(iter(evaluated.values()), None)
    for data in (evaluated, trainer.train_dataset):
        name = getattr(data, "builder_name", None)
        if isinstance(name, str) and not name.endswith(_FILES):
            config, split = getattr(data, "config_name", None), getattr(data, "split", None)
            return [Dataset(name, name, config, None if split is None else str(split))]
    return []


def of_the_run(trainer: Trainer) -> dict[str, object]:
    """Gives what the run was: how it ended, how long it was, what it trained."""
    state, args = trainer.state, trainer.args
    parameters = list(trainer.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    world, (_, own) = trainer.ranks.world_size, trainer.users_optimizers
    told: dict[str, object] = {
        "outcome": _outcome(trainer),
        "steps": f"{state.global_step} of {state.max_steps}" if state.max_steps else state.global_step,
        "epochs": f"{state.epoch:g}",
        "samples": state.num_samples_seen,
        "samples a step": state.global_batch_size or trainer.batching.global_batch_size,
        "processes": world,
        "model": kind_of(trainer.model),
        "parameters": f"{sum(parameter.numel() for parameter in parameters):,} ({trained:,} trained)",
        "optimizer": _class_of(trainer.optimizer),
        "learning rate schedule": args.lr_scheduler_type if own is None else type(own).__name__,
        "training loss": f"{trainer.train_metrics['train_loss']:.4f}"
        if "train_loss" in trainer.train_metrics
        else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _outcome(trainer: Trainer) -> str:
    request = trainer.stop_request
    if trainer.outcome == "stopped" and request is not None:
        return f"stopped by {request.by}: {request.why}"
    return _OUTCOMES.get(trainer.outcome, trainer.outcome)


def _class_of(thing: object) -> str | None:
    """Gives the class of an optimizer, which Accelerate may have wrapped."""
    inner = getattr(thing, "optimizer", None) if type(thing).__module__.startswith("accelerate.") else thing
    return None if inner is None else type(inner).__name__


def changed_settings(args: TrainingArguments) -> dict[str, str]:
    """Gives the settings that are not what they are by default, secrets masked; a plugin's under its name."""
    return {
        name: f"`{mask_secrets(value, name)}`"
        for name, value in {**_of_the_core(args), **_of_plugins(args)}.items()
        if name not in _NOT_TOLD
    }


def _of_the_core(args: TrainingArguments) -> dict[str, Any]:
    return {
        name: getattr(args, name)
        for name, field in type(args).model_fields.items()
        if not args.sources[name].startswith(("default", "follows from"))
        and getattr(args, name) != field.get_default(call_default_factory=True)
    }


def _of_plugins(args: TrainingArguments) -> dict[str, Any]:
    return {
        f"{plugin}.{name}": getattr(section, name)
        for plugin, section in args.sections.items()
        if plugin not in _NOT_TOLD_OF
        for name, field in type(section).model_fields.items()
        if getattr(section, name) != field.get_default(call_default_factory=True)
    }


def versions(trainer: Trainer) -> dict[str, str]:
    """Gives the versions of Python, of ours and torch, and of the libraries that model, data and tokenizer are from."""
    used = {kind.__module__.partition(".")[0] for thing in _used(trainer) for kind in type(thing).__mro__}
    names = ["trainer_core", "torch", *(name for name in _LIBRARIES if name in used or name == "accelerate")]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name.replace("_", "-"))
        except PackageNotFoundError:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found


def _used(trainer: Trainer) -> list[object]:
    evaluated = trainer.eval_dataset
    sets = list(evaluated.values()) if isinstance(evaluated, Mapping) else [evaluated]
    tokenizer = getattr(trainer.processing_class, "backend_tokenizer", None)
    return [trainer.model, _inner(trainer.model), trainer.processing_class, tokenizer, trainer.train_dataset, *sets]
