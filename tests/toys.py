"""Small models, data and trainers for the tests of the numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from trainer_core import Trainer, TrainingArguments
from trainer_core.settings.discovery import installed_names

torch.set_num_threads(1)

BLOCKED = sorted(installed_names())


class Classifier(nn.Module):
    """Rows (batch, ..., 4) to 3 classes; the loss is a mean over labels that are not -100."""

    def __init__(self, dropout=0.0, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))

    def forward(self, x, labels=None):
        logits = self.layers(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits.reshape(-1, 3), labels.reshape(-1)), "logits": logits}


class Regressor(nn.Module):
    """Rows (batch, 4) to 2 numbers; the loss is their mean squared error."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 2)

    def forward(self, x, labels):
        prediction = self.layer(x)
        return functional.mse_loss(prediction, labels), prediction


class Rows(Dataset):
    """Samples as mappings."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


class Stream(IterableDataset):
    """The rows of a dataset, without a length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (self.rows[index] for index in range(len(self.rows)))


class Gradients:
    """A plugin that keeps the gradient of every update as one vector."""

    def __init__(self):
        self.kept = []

    def on_pre_optimizer_step(self, trainer):
        self.kept.append(gradient_of(trainer.model))


def gradient_of(model):
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def weights_of(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def table(rows=20, *, tokens=None, seed=0, dtype=torch.float32):
    """Features (rows, [tokens,] 4) and labels of 3 classes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows,) if tokens is None else (rows, tokens)
    return (
        torch.randn(*shape, 4, generator=generator, dtype=dtype),
        torch.randint(3, shape, generator=generator),
    )


def pairs(rows=20, **options):
    return TensorDataset(*table(rows, **options))


def named_rows(rows=20, **options):
    x, labels = table(rows, **options)
    return Rows(x=x, labels=labels)


def arguments(folder, **changes):
    options = {
        "block_plugins": BLOCKED,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 0.1,
        **changes,
    }
    return TrainingArguments(str(folder), **options)


def trainer_for(folder, model, train_dataset=None, *, kind=Trainer, given=None, **changes):
    """A trainer on a copy of `model`; `given` goes to the constructor, the rest to the settings."""
    return kind(
        model=copy.deepcopy(model), args=arguments(folder, **changes), train_dataset=train_dataset, **(given or {})
    )


def trained(folder, model, train_dataset, **options):
    trainer = trainer_for(folder, model, train_dataset, **options)
    trainer.train()
    return trainer


def gradients(folder, model, train_dataset, *, given=None, **options):
    """The gradients of all updates, unclipped."""
    plugin = Gradients()
    given = {**(given or {}), "plugins": [plugin]}
    trained(folder, model, train_dataset, given=given, max_grad_norm=None, **options)
    return plugin.kept


def micro_batches(dataset: TensorDataset, size: int) -> Iterable[tuple[torch.Tensor, ...]]:
    return list(zip(*(tensor.split(size) for tensor in dataset.tensors), strict=True))
