"""What of a run is pushed, and what it replaces in the repository.

The model is every file of a checkpoint but those that only a resumed run reads. Which these are is said here, by name,
rather than which the model's are: a model's library names its files as it likes (shards, adapters, a tokenizer's).
The card is not among them: that of the last push describes the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainer_core_hub_push.entries import Push, files_in

if TYPE_CHECKING:
    from trainer_core import Trainer
    from trainer_core_hub_push.settings import HubPushSettings

MODEL: Final = "model"
"""Key of pushes of the model; the newest replaces the others."""
CARD: Final = "README.md"
LAST: Final = "last-checkpoint"
"""Folder in the repository of the newest checkpoint, with the strategy "checkpoint"."""
OF_THE_RUN: Final = ("manifest.json", "state.*", "rank-*", "log_history.jsonl", ".*")
"""Names of files in a checkpoint that are not the model's."""
WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "adapter_model.safetensors",
    "adapter_model.safetensors.index.json",
    "adapter_model-*-of-*.safetensors",
)
"""Weights in a repository's root: those of an earlier push go, for a reader would take them for the model's."""


def model_files(folder: Path) -> list[str]:
    """Gives the files in a checkpoint that are the model's, by path in it."""
    return [name for name in files_in(folder) if name != CARD and not _is_of_the_run(name)]


def _is_of_the_run(name: str) -> bool:
    first = name.partition("/")[0]
    return any(fnmatchcase(first, pattern) for pattern in OF_THE_RUN)


def pushes_of_save(
    trainer: Trainer, settings: HubPushSettings, checkpoint: Path
) -> Iterator[tuple[Push, dict[str, Path]]]:
    """Gives what a save pushes: (push, files by path in it) each."""
    if settings.strategy == "end":
        return
    message = f"Training in progress, {_moment(trainer)}"
    yield (
        push_of_model(trainer, settings, message),
        {name: checkpoint / name for name in model_files(checkpoint)},
    )
    if settings.strategy in ("checkpoint", "all_checkpoints"):
        path = LAST if settings.strategy == "checkpoint" else checkpoint.name
        files = {name: checkpoint / name for name in files_in(checkpoint)}
        yield (
            Push(
                repo=settings.repo_id(trainer.args),
                message=f"{message}, checkpoint",
                path=path,
                key="" if settings.always_push or path != LAST else LAST,
                replaces=(f"{path}/*",),
                revision=settings.revision,
                private=settings.private_repo,
                step=trainer.state.global_step,
            ),
            files,
        )


def push_of_model(trainer: Trainer, settings: HubPushSettings, message: str) -> Push:
    """Gives the push of a model into the repository's root."""
    return Push(
        repo=settings.repo_id(trainer.args),
        message=message,
        key="" if settings.always_push else MODEL,
        replaces=WEIGHTS,
        revision=settings.revision,
        private=settings.private_repo,
        step=trainer.state.global_step,
    )


def _moment(trainer: Trainer) -> str:
    """Names the moment of a save as its strategy counts it."""
    if getattr(trainer.args, "save_strategy", None) == "epoch":
        return f"epoch {trainer.state.epoch:g}"
    return f"step {trainer.state.global_step}"
