"""The runs that are killed: small, with everything that draws random numbers, and what comes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import Dataset

from trainer_core import Trainer, TrainingArguments
from trainer_core.settings.discovery import installed_names
from trainer_core.testing.crash.witness import Witness, witnessed

COMMON: Final[Mapping[str, Any]] = {
    "block_plugins": sorted(installed_names() - {"checkpointing", "logging", "early_stopping"}),
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 0.05,
    "eval_strategy": "steps",
    "load_best_model_at_end": True,
    "save_total_limit": 1,
    "logging_steps": 1,
    "resume_from_checkpoint": True,
}
RUNS: Final[Mapping[str, Mapping[str, Any]]] = {
    "smallest": {"max_steps": 4, "save_steps": 2, "eval_steps": 3},
    "larger": {
        "num_train_epochs": 10,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 2,
        "early_stopping_patience": 2,
        "learning_rate": 0.6,
    },
    "evaluated at its cuts": {
        "num_train_epochs": 4.5,
        "eval_on_start": True,
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 2,
        "logging_first_step": True,
        "logging_steps": 3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
    },
    "written behind": {"max_steps": 9, "save_steps": 2, "eval_steps": 3, "checkpoint_async": True},
    "plateau": {
        "max_steps": 10,
        "save_steps": 3,
        "eval_steps": 1,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0},
        "gradient_accumulation_steps": 2,
    },
}
"""Name -> settings."""


class Net(nn.Module):
    """Two classes from three numbers, with dropout and running statistics; gives its loss when it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.drop(self.norm(torch.tanh(self.hidden(x)))))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Noisy(Dataset[dict[str, torch.Tensor]]):
    """Rows with noise of two generators."""

    def __init__(self, rows: int, seed: int, *, noise: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(rows, 3, generator=generator)
        self.labels = (self.x.sum(1) > 0).long()
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = self.noise * (torch.randn(3) + random.gauss(0, 1))
        return {"x": self.x[index] + noise, "labels": self.labels[index]}


def run(folder: Path, announce: Callable[[str], None], name: str, **options: Any) -> dict[str, Any]:
    """Trains the run `name` in `folder`, resuming what is there, and gives what it did and what must be equal."""
    random.seed(7)
    torch.manual_seed(7)
    witness = Witness(announce)
    trainer = Trainer(
        model=Net(),
        args=TrainingArguments(str(folder), **{**COMMON, **RUNS[name], **options}),
        train_dataset=Noisy(10, 0, noise=0.1),
        eval_dataset=Noisy(6, 1, noise=0.0),
        plugins=[witness],
    )
    return witnessed(trainer, witness)


@contextmanager
def prepared() -> Iterator[None]:
    """Trains once, so that all that is imported late is there before the first fork."""
    with TemporaryDirectory() as folder:
        run(Path(folder) / "run", lambda what: None, "smallest")
    yield
