"""A tiny model, tiny data, and a run of them: enough to see what a plugin does."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from trainer_core.metrics import EvalPrediction
from trainer_core.settings.arguments import TrainingArguments
from trainer_core.settings.discovery import BLOCK_VARIABLE, installed_names
from trainer_core.trainer import Trainer


class TinyModel(nn.Module):
    """Three classes from four tokens; has embeddings, dropout and a buffer, and gives its loss."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, 3)
        self.register_buffer("scale", torch.ones(()))

    def get_input_embeddings(self) -> nn.Embedding:
        """Gives the embeddings, as transformers models do."""
        return self.embedding

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Gives logits `(batch, 3)`, and the loss when there are labels `(batch,)`."""
        logits = self.head(self.dropout(self.embedding(input_ids).mean(1))) * self.scale
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def tiny_model(seed: int = 0) -> TinyModel:
    """Gives a small model, the same for each seed; the caller's random state stays as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyModel()


def tiny_dataset(num_samples: int = 24, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Gives samples for `tiny_model`: `input_ids` `(4,)`, and how many pairs of them are large as the label."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(12, (num_samples, 4), generator=generator)
    return [{"input_ids": row, "labels": (row >= 6).sum() // 2} for row in rows]


def run(
    plugins: Iterable[object] = (),
    *,
    installed: Collection[str] = (),
    model: nn.Module | None = None,
    train_dataset: Any = None,
    **options: object,
) -> Trainer:
    """Trains for two epochs of 12 updates, with an evaluation after each, and gives the trainer.

    Args:
        plugins: objects to put on the bus.
        installed: names of installed plugins that are not blocked.
        model: instead of `tiny_model()`.
        train_dataset: instead of `tiny_dataset()`.
        options: of `TrainingArguments`; without `output_dir` what the run writes is gone afterwards.
    """
    with TemporaryDirectory() as folder, only(*installed):
        trainer = tiny_trainer(Path(folder), plugins, model, train_dataset, options)
        trainer.train()
        return trainer


@contextmanager
def only(*names: str) -> Iterator[None]:
    """Blocks all installed plugins but `names`."""
    blocked = ",".join(sorted(installed_names() - set(names)))
    with patch.dict(os.environ, {BLOCK_VARIABLE: blocked}):
        yield


def tiny_trainer(
    folder: Path,
    plugins: Iterable[object] = (),
    model: nn.Module | None = None,
    train_dataset: Any = None,
    options: Mapping[str, object] = {},
) -> Trainer:
    """Gives the trainer of `run`, which writes into `folder`."""
    usual: dict[str, object] = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "eval_strategy": "epoch"}
    return Trainer(
        model=tiny_model() if model is None else model,
        args=TrainingArguments(**{"output_dir": folder, **usual, **options}),  # type: ignore[arg-type] # checked there
        train_dataset=tiny_dataset() if train_dataset is None else train_dataset,
        eval_dataset=tiny_dataset(8, seed=1),
        compute_metrics=_accuracy,
        plugins=plugins,
    )


def _accuracy(outputs: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((outputs.predictions.argmax(-1) == outputs.label_ids).mean())}
