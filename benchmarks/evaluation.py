"""The cases about evaluation: 20,000 samples, logits kept or metrics streamed, against a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.contenders import our_arguments
from benchmarks.report import Row
from benchmarks.turns import ratio, take_turns
from benchmarks.workloads import SEED, Recipe, TinyNetwork, samples
from trainer_core import Trainer

BATCH_SIZE = 32
TARGETS = {64: (1.05, 1.1), 1000: (1.0, 0.7)}
"""Classes, and what to reach with logits kept and with a streaming metric, x the plain loop that keeps them."""

Evaluate = Callable[[TinyNetwork, int, int], dict[str, float]]


def evaluation_rows(rounds: int, num_samples: int) -> Iterator[Row]:
    """Gives CPU time of evaluations as a ratio to the plain loop."""
    contenders: dict[str, Evaluate] = {"plain loop": plain, "kept": keeping, "streamed": streaming}
    for classes, targets in TARGETS.items():
        torch.manual_seed(SEED)
        model = TinyNetwork(classes)
        metrics = {name: evaluate(model, classes, num_samples) for name, evaluate in contenders.items()}
        check(metrics)
        turns = take_turns(
            {name: partial(_seconds, evaluate, model, classes, num_samples) for name, evaluate in contenders.items()},
            rounds,
        )
        size = f"evaluation, {num_samples:,} samples, {classes:,} classes"
        note = f"metrics equal; batches of {BATCH_SIZE}"
        for name, target in zip(("kept", "streamed"), targets, strict=True):
            yield Row(size, f"trainer_core, {name}", "x plain loop", ratio(turns, name, "plain loop"), target, note)


def plain(model: TinyNetwork, classes: int, num_samples: int) -> dict[str, float]:
    """The loop that one writes by hand; keeps logits and labels."""
    model.eval()
    logits, labels, loss_sum = [], [], 0.0
    with torch.no_grad():
        for x, wanted in DataLoader(samples(num_samples, classes=classes), batch_size=BATCH_SIZE):
            outputs = model(x, wanted)
            loss_sum += outputs["loss"].item() * len(wanted)
            logits.append(outputs["logits"])
            labels.append(wanted)
    predictions, label_ids = torch.cat(logits).numpy(), torch.cat(labels).numpy()
    return {"loss": loss_sum / num_samples, "accuracy": float(accuracy((predictions, label_ids))["accuracy"])}


def keeping(model: TinyNetwork, classes: int, num_samples: int) -> dict[str, float]:
    """Ours, with all logits handed to `compute_metrics`."""
    return _evaluated(model, classes, num_samples, accuracy)


def streaming(model: TinyNetwork, classes: int, num_samples: int) -> dict[str, float]:
    """Ours, with a metric that takes a batch at a time."""
    return _evaluated(model, classes, num_samples, StreamedAccuracy(), batch_eval_metrics=True)


def accuracy(prediction: Any) -> dict[str, float]:
    """Gives the share of right answers."""
    logits, labels = prediction
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


class StreamedAccuracy:
    """The same, a batch at a time."""

    def __init__(self) -> None:
        self.right = self.total = 0

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        logits, labels = prediction
        self.right += int((logits.argmax(-1) == labels).sum())
        self.total += len(labels)
        if not compute_result:
            return {}
        right, total, self.right, self.total = self.right, self.total, 0, 0
        return {"accuracy": right / total}


def check(metrics: dict[str, dict[str, float]]) -> None:
    """Raises RuntimeError unless all contenders found the same."""
    wanted = metrics["plain loop"]
    for name, found in metrics.items():
        if any(abs(found[key] - value) > 1e-9 for key, value in wanted.items()):
            raise RuntimeError(f"{name}: gives other metrics than the plain loop, {found} instead of {wanted}")


def _evaluated(
    model: TinyNetwork, classes: int, num_samples: int, metric: Callable[..., dict[str, float]], **settings: Any
) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        wanted = our_arguments(Recipe(), output_dir=folder, per_device_eval_batch_size=BATCH_SIZE, **settings)
        trainer = Trainer(model, wanted, compute_metrics=metric)
        found = trainer.evaluate(samples(num_samples, classes=classes))
    return {"loss": found["eval_loss"], "accuracy": found["eval_accuracy"]}


def _seconds(evaluate: Evaluate, model: TinyNetwork, classes: int, num_samples: int) -> float:
    started = process_time()
    evaluate(model, classes, num_samples)
    return process_time() - started
