"""What `compute_metrics` may be, and how each kind is fed.

    a function                        EvalPrediction -> mapping, once, with all rows as numpy arrays
    a function, batch_eval_metrics    (EvalPrediction, compute_result=...) -> mapping, a call a batch, with tensors
    an object with update, compute    a metric or collection of torchmetrics: gets the tensors of each batch, computes
    and reset                         at the end; where it gives one value, its name is that of its class
    an object with add_batch          a module of evaluate: gets the arrays of each batch, computes at the end
    and compute

Which kind it is is decided once an evaluation. Objects and functions that take batches get those of all ranks, each
once and in the same order on every rank, so that what they give is the same there: an object's own exchange between
ranks is turned off while it computes. They get what the model gives: most metrics of torchmetrics take logits for
several classes, most of evaluate want classes. `preprocess_logits_for_metrics=lambda logits, labels:
logits.argmax(-1)` makes classes of logits; nothing here guesses it. Labels of -100 are passed on, too (torchmetrics
has `ignore_index=-100`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import torch

from trainer_core.collection import as_array, map_tree, settled
from trainer_core.errors import DataError


@dataclass(frozen=True)
class EvalPrediction:
    """What `compute_metrics` gets; unpacks into predictions and label_ids.

    All are numpy arrays, or tensors where a function takes batches (`batch_eval_metrics`).

    Attributes:
        predictions: array (rows, ...), or a tuple or mapping of arrays.
        label_ids: the same for the labels.
        inputs: the model's main input, when `include_for_metrics` names "inputs".
        losses: (rows,), the loss of each row's batch, when `include_for_metrics` names "loss".
    """

    predictions: Any
    label_ids: Any
    inputs: Any = None
    losses: Any = None

    def __iter__(self) -> Iterator[Any]:
        more = [value for value in (self.inputs, self.losses) if value is not None]
        return iter((self.predictions, self.label_ids, *more))

    def __getitem__(self, index: int) -> Any:
        return tuple(self)[index]

    def settled(self) -> EvalPrediction:
        """Gives the same without gradients."""
        return self._mapped(lambda tree: None if tree is None else settled(tree))

    def on_host(self) -> EvalPrediction:
        """Gives the same on the CPU, in memory of its own: a view would travel with all that it is a part of."""
        return self._mapped(partial(map_tree, lambda leaf: leaf.cpu().clone() if torch.is_tensor(leaf) else leaf))

    def on(self, device: torch.device) -> EvalPrediction:
        """Gives the same on `device`."""
        return self._mapped(partial(map_tree, lambda leaf: leaf.to(device) if torch.is_tensor(leaf) else leaf))

    def _mapped(self, change: Callable[[Any], Any]) -> EvalPrediction:
        return EvalPrediction(*(change(getattr(self, entry.name)) for entry in fields(self)))

    @property
    def is_complete(self) -> bool:
        """Whether there are predictions and labels to compare."""
        return self.predictions is not None and self.label_ids is not None


class Metrics(Protocol):
    """Metrics of one evaluation."""

    takes_batches: bool
    """Whether `add` wants each batch, as tensors; else it is called once, with the arrays of all rows."""

    def add(self, prediction: EvalPrediction) -> None:
        """Takes predictions and labels."""

    def result(self) -> Any:
        """Gives the metrics of all that was added; called once, and only if something was."""


def metrics_of(compute_metrics: Any, device: torch.device, *, in_batches: bool) -> Metrics:
    """Gives what feeds `compute_metrics`, for one evaluation.

    Args:
        compute_metrics: as the user passed it to the trainer.
        device: where batches are.
        in_batches: functions take batches.
    """
    if _has(compute_metrics, *UPDATED):
        return _Updated(compute_metrics, device)
    if _has(compute_metrics, *ADDED):
        return _Added(compute_metrics)
    return _InBatches(compute_metrics) if in_batches else _AtOnce(compute_metrics)


def problem_of(compute_metrics: Any) -> str | None:
    """Gives a sentence on why `compute_metrics` cannot be one, or None."""
    is_object = _has(compute_metrics, *UPDATED) or _has(compute_metrics, *ADDED)
    if is_object and isinstance(compute_metrics, type):
        return f"compute_metrics: {compute_metrics.__name__} is a class. Pass an instance of it."
    if is_object and getattr(compute_metrics, "num_process", 1) > 1:
        count = compute_metrics.num_process
        return f"compute_metrics: is loaded for {count} processes, every rank gets all batches. Load it for one."
    if not is_object and not callable(compute_metrics):
        kind = type(compute_metrics).__name__
        return f"compute_metrics: must be a function or a metric, got {kind}. Pass a function."
    return None


UPDATED: Final = ("update", "compute", "reset")
ADDED: Final = ("add_batch", "compute")


def _has(value: Any, *methods: str) -> bool:
    return all(callable(getattr(value, method, None)) for method in methods)


class _AtOnce:
    """A function of all rows."""

    takes_batches = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def add(self, prediction: EvalPrediction) -> None:
        self.prediction = prediction

    def result(self) -> Any:
        return self.function(self.prediction)


class _InBatches:
    """A function of each batch; the last one waits until it is known to be that."""

    takes_batches = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.held: EvalPrediction | None = None

    def add(self, prediction: EvalPrediction) -> None:
        if self.held is not None:
            self.function(self.held, compute_result=False)
        self.held = prediction

    def result(self) -> Any:
        return self.function(self.held, compute_result=True)


class _Updated:
    """A metric or collection of torchmetrics, or what looks like one."""

    takes_batches = True

    def __init__(self, metric: Any, device: torch.device) -> None:
        self.metric = metric
        metric.reset()
        if hasattr(metric, "to"):
            metric.to(device)

    def add(self, prediction: EvalPrediction) -> None:
        self.metric.update(_one(prediction.predictions, "predictions"), _one(prediction.label_ids, "labels"))

    def result(self) -> Any:
        with _unshared(self.metric):
            value = self.metric.compute()
        self.metric.reset()
        return value if isinstance(value, Mapping) else {type(self.metric).__name__: value}


class _Added:
    """A module of evaluate, or what looks like one."""

    takes_batches = True

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def add(self, prediction: EvalPrediction) -> None:
        predictions = as_array(_one(prediction.predictions, "predictions"))
        self.metric.add_batch(predictions=predictions, references=as_array(_one(prediction.label_ids, "labels")))

    def result(self) -> Any:
        return self.metric.compute()


def _one(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    raise DataError(
        f"compute_metrics: a metric object takes one tensor of {what}, got {type(value).__name__} of {len(value)}. "
        f"Choose one in preprocess_logits_for_metrics, with ignore_keys or label_names, or pass a function."
    )


@contextmanager
def _unshared(metric: Any) -> Iterator[None]:
    """Keeps a metric of torchmetrics, and those in it, from adding up ranks that all got everything already."""
    parts = list(metric.modules()) if isinstance(metric, torch.nn.Module) else [metric]
    with ExitStack() as undo:
        for part in parts:
            if hasattr(part, "distributed_available_fn"):
                undo.callback(setattr, part, "distributed_available_fn", part.distributed_available_fn)
                part.distributed_available_fn = _never
        yield


def _never() -> bool:
    return False


def plain(value: Any) -> Any:
    """Gives a metric as what JSON can hold: numbers of numpy and torch as Python's, arrays as lists."""
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
