"""The peers, each used as its own documentation shows, with what it prints and saves turned off."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.contenders import Contender, users_optimizers
from benchmarks.workloads import Clocked, Recipe


def installed_peers() -> tuple[list[Contender], list[str]]:
    """Gives the peers that can be imported, and the names of those that cannot."""
    found = [contender for contender, module in PEERS.items() if find_spec(module) is not None]
    return found, [contender.name for contender, module in PEERS.items() if find_spec(module) is None]


def with_accelerate(model: Clocked, recipe: Recipe) -> None:
    """A raw loop over what Accelerate prepared."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=recipe.accumulation)
    optimizer, scheduler = users_optimizers(model, recipe)
    loader: Any = DataLoader(recipe.dataset(), batch_size=recipe.batch_size)
    prepared, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for x, labels in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(x, labels)["loss"])
            if recipe.clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), recipe.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def with_transformers(model: Clocked, recipe: Recipe) -> None:
    """The Trainer of transformers with its own optimizer and schedule."""
    from transformers import Trainer, TrainingArguments

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=recipe.updates,
            per_device_train_batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.accumulation,
            max_grad_norm=recipe.clip or 0.0,
            learning_rate=recipe.learning_rate,
            train_sampling_strategy="sequential",
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=recipe.dataset(), data_collator=_named)
        trainer.train()


def with_lightning(model: Clocked, recipe: Recipe) -> None:
    """Lightning's Trainer around a module that holds the model."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.model(*batch)["loss"]

        def configure_optimizers(self) -> Any:
            optimizer, scheduler = users_optimizers(model, recipe)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            devices=1,
            max_steps=recipe.updates,
            accumulate_grad_batches=recipe.accumulation,
            gradient_clip_val=recipe.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), DataLoader(recipe.dataset(), batch_size=recipe.batch_size))


def with_ignite(model: Clocked, recipe: Recipe) -> None:
    """Ignite's engine with a step written by hand, which is what its engine takes."""
    from ignite.engine import Engine, Events

    optimizer, scheduler = users_optimizers(model, recipe)

    def update(engine: Engine, batch: Any) -> float:
        x, labels = batch
        loss = model(x, labels)["loss"] / recipe.accumulation
        loss.backward()
        if engine.state.iteration % recipe.accumulation == 0:
            if recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def move_rate_on() -> None:  # ignite would hand its engine to a method that takes an argument
        scheduler.step()

    engine = Engine(update)
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=recipe.accumulation), move_rate_on)
    engine.run(DataLoader(recipe.dataset(), batch_size=recipe.batch_size), max_epochs=1)


def _named(rows: list[tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
    """Collates to names, the form that transformers' Trainer takes."""
    x, labels = zip(*rows, strict=True)
    return {"x": torch.stack(x), "labels": torch.stack(labels)}


PEERS: dict[Contender, str] = {
    Contender("accelerate, raw loop", with_accelerate): "accelerate",
    Contender("transformers", with_transformers, fused=True, weight_decay=0.0): "transformers",
    Contender("lightning", with_lightning): "lightning",
    Contender("ignite", with_ignite): "ignite",
}
"""Each peer and the module that must be importable."""
