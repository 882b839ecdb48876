"""Models and data that all contenders train on, made anew from one seed for every turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import process_time
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

SEED = 0
FEATURES = 64


class Clock:
    """Takes the CPU time when forward number `first` and forward number `last` begin (counted from 0)."""

    def __init__(self, first: int = -1, last: int = -1) -> None:
        self.first, self.last = first, last
        self.forwards = 0
        self.begin = self.end = 0.0

    def tick(self) -> None:
        if self.forwards == self.first:
            self.begin = process_time()
        elif self.forwards == self.last:
            self.end = process_time()
        self.forwards += 1


class Clocked(nn.Module):
    """A model whose forward ticks a clock, so that every contender is timed at the same two places."""

    clock: Clock = Clock()


class TinyNetwork(Clocked):
    """Two layers of 64; three modules and four parameters, besides modules that stand idle."""

    def __init__(self, classes: int = 10, idle_modules: int = 0) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 64)
        self.head = nn.Linear(64, classes)
        if idle_modules:
            self.idle = nn.ModuleList(nn.Identity() for _ in range(idle_modules - 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.clock.tick()
        logits = self.head(torch.relu(self.hidden(x)))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class DeepNetwork(Clocked):
    """29 blocks of a layer and an activation: 88 modules, all of them called."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh()) for _ in range(29)]
        for number, block in enumerate(blocks):
            self.add_module(f"block{number}", block)
        self.blocks = tuple(blocks)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.clock.tick()
        for block in self.blocks:
            x = block(x)
        return {"loss": functional.cross_entropy(x, labels), "logits": x}


class Transformer(Clocked):
    """4 layers of 256 over 128 tokens, classified by the mean."""

    LENGTH = 128
    VOCABULARY = 8000

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(self.VOCABULARY, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.clock.tick()
        logits = self.head(self.encoder(self.embedding(x)).mean(1))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


@dataclass(frozen=True)
class Recipe:
    """What is to be trained, and how.

    Attributes:
        build: gives the model.
        updates, warm_updates: updates of a turn, and how many of them pass before the clock starts.
        accumulation: micro-batches an update.
        clip: limit of the gradient norm; None for no clipping.
        tokens: the inputs are token numbers instead of features.
        wrap: what is made of the dataset before all but `tuned` read it.
    """

    build: Callable[[], Clocked] = TinyNetwork
    updates: int = 240
    warm_updates: int = 16
    batch_size: int = 32
    accumulation: int = 1
    clip: float | None = None
    tokens: bool = False
    learning_rate: float = 1e-3
    wrap: Callable[[TensorDataset], Any] | None = None

    def model(self) -> Clocked:
        """Gives the model, from the seed, with a clock for one turn."""
        torch.manual_seed(SEED)
        model = self.build()
        model.clock = Clock(self.warm_updates * self.accumulation, self.updates * self.accumulation - 1)
        return model

    def tensors(self) -> TensorDataset:
        """Gives as many samples as a turn reads, each once and in this order."""
        return samples(self.updates * self.accumulation * self.batch_size, tokens=self.tokens)

    def dataset(self) -> Any:
        """Gives the same as the dataset that contenders are given."""
        return self.wrap(self.tensors()) if self.wrap is not None else self.tensors()

    def factor(self, step: int) -> float:
        """Gives the linear decay of the learning rate after `step` updates, as all contenders have it."""
        return max(0.0, (self.updates - step) / self.updates)

    def seconds(self, clock: Clock) -> float:
        """Gives CPU seconds an update between the two readings."""
        return (clock.end - clock.begin) / (clock.last - clock.first) * self.accumulation


@cache
def samples(length: int, *, tokens: bool = False, classes: int = 10) -> TensorDataset:
    """Gives random inputs with labels."""
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.randint(classes, (length,), generator=generator)
    if tokens:
        shape = (length, Transformer.LENGTH)
        return TensorDataset(torch.randint(Transformer.VOCABULARY, shape, generator=generator), labels)
    return TensorDataset(torch.randn(length, FEATURES, generator=generator), labels)


class Batched(Dataset[Any]):
    """The samples of a TensorDataset, fetched a batch at a time; to be used with `collate_fn=as_fetched`."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.tensors = dataset.tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, ...]:
        rows = torch.tensor(indices)
        return tuple(tensor.index_select(0, rows) for tensor in self.tensors)


def as_fetched(batch: Any) -> Any:
    """Gives what `Batched` fetched."""
    return batch


def weights_of(model: nn.Module) -> torch.Tensor:
    """Gives all weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
