"""The plain loops, and ours; the peers stand in `peers`.

A contender trains the model of a recipe from the first update to the last. It is timed between two forwards inside
the model (see `workloads.Clock`), so that what it does before and after training does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from benchmarks.workloads import Batched, Clocked, Recipe, as_fetched, weights_of
from trainer_core import Trainer, TrainingArguments

Train = Callable[[Clocked, Recipe], None]


@dataclass(frozen=True)
class Contender:
    """A way to train.

    Attributes:
        name: as it stands in the table.
        train: trains a model by a recipe.
        fused: whether its AdamW is the fused one, which rounds otherwise than the default one.
        weight_decay: what its AdamW is made with: torch's default, or the library's.
    """

    name: str
    train: Train
    fused: bool = False
    weight_decay: float = 0.01

    def turn(self, recipe: Recipe) -> tuple[float, torch.Tensor]:
        """Trains once; gives CPU seconds an update and the weights at the end."""
        model = recipe.model()
        self.train(model, recipe)
        return recipe.seconds(model.clock), weights_of(model)


def plain_loop(model: Clocked, recipe: Recipe, loader: DataLoader[Any], optimizer: torch.optim.Optimizer) -> None:
    """The loop that one writes by hand; the learning rate falls as everybody's does."""
    groups, step = optimizer.param_groups, 0
    for number, (x, labels) in enumerate(loader, 1):
        loss = model(x, labels)["loss"]
        if recipe.accumulation > 1:
            loss = loss / recipe.accumulation
        loss.backward()
        if number % recipe.accumulation:
            continue
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        groups[0]["lr"] = recipe.learning_rate * recipe.factor(step)


def bare(model: Clocked, recipe: Recipe) -> None:
    """DataLoader with its defaults, AdamW with its defaults."""
    loader = DataLoader(recipe.dataset(), batch_size=recipe.batch_size)
    plain_loop(model, recipe, loader, torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate))


def tuned(model: Clocked, recipe: Recipe) -> None:
    """Fused AdamW, and a batch fetched at a time."""
    loader = DataLoader(Batched(recipe.tensors()), batch_size=recipe.batch_size, collate_fn=as_fetched)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, fused=True)
    plain_loop(model, recipe, loader, optimizer)


def reference(recipe: Recipe, *, fused: bool, weight_decay: float) -> torch.Tensor:
    """Gives the weights that a contender with this AdamW must end with, to the bit."""
    model = recipe.model()
    loader = DataLoader(recipe.dataset(), batch_size=recipe.batch_size)
    options = {"lr": recipe.learning_rate, "weight_decay": weight_decay, "fused": fused}
    plain_loop(model, recipe, loader, torch.optim.AdamW(model.parameters(), **options))
    return weights_of(model)


def ours(*, users_optimizer: bool = False, plugins: Sequence[object] = (), **settings: Any) -> Train:
    """Gives our contender: with our defaults, or with the optimizer and schedule of a user."""

    def train(model: Clocked, recipe: Recipe) -> None:
        optimizers = users_optimizers(model, recipe) if users_optimizer else (None, None)
        with TemporaryDirectory() as folder:
            arguments = our_arguments(recipe, output_dir=folder, **settings)
            trainer = Trainer(
                model, arguments, train_dataset=recipe.dataset(), optimizers=optimizers, plugins=list(plugins)
            )
            trainer.train()

    return train


def our_arguments(recipe: Recipe, **settings: Any) -> TrainingArguments:
    """Gives settings that train by the recipe, without the built-in plugins unless `settings` says so."""
    wanted: dict[str, Any] = {
        "block_plugins": ["logging", "console", "checkpointing"],
        "max_steps": recipe.updates,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulation,
        "max_grad_norm": recipe.clip,
        "learning_rate": recipe.learning_rate,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
    }
    return TrainingArguments(**{**wanted, **settings})


def users_optimizers(model: Clocked, recipe: Recipe) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Gives torch's default AdamW and a LambdaLR, as users pass them in."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    return optimizer, LambdaLR(optimizer, recipe.factor)


BARE = Contender("bare", bare)
TUNED = Contender("tuned", tuned, fused=True)
OURS = Contender("trainer_core", ours(), fused=True, weight_decay=0.0)
OURS_WITH_USERS_OPTIMIZER = Contender("trainer_core", ours(users_optimizer=True))
