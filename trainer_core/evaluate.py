"""Evaluation and prediction: every row once, in order, at a cost that grows with the rows and no faster.

Predictions are written into one growing buffer per output, never concatenated again. The loss is the sum over
targets divided by their count, so that no batch size changes it. Each rank evaluates a contiguous share of the rows;
the shares are put together at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from trainer_core.collection import BatchCollector, Collector, as_array, chained, concatenated, map_tree
from trainer_core.data.batches import batch_size_of, count_targets, to_device
from trainer_core.data.reading import stream
from trainer_core.data.sampling import restore_order
from trainer_core.errors import DataError
from trainer_core.modes import refuse_unshared

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from trainer_core.trainer import Trainer


@dataclass(frozen=True)
class EvalPrediction:
    """What `compute_metrics` gets; unpacks into predictions and label_ids.

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


class PredictionOutput(NamedTuple):
    """What `predict` gives: arrays (rows, ...) and metrics."""

    predictions: Any
    label_ids: Any
    metrics: dict[str, float]


class EvalLoopOutput(NamedTuple):
    """What `evaluation_loop` gives: arrays (rows, ...), metrics, and the number of rows."""

    predictions: Any
    label_ids: Any
    metrics: dict[str, float]
    num_samples: int


class Evaluation:
    """One pass over evaluation or test data.

    Args:
        trainer: whose `prediction_step` and `compute_metrics` are called.
        prefix: of the metric keys.
        loss_only: do not keep predictions.
        ignore_keys: outputs to leave out.
        is_told: plugins hear of each batch.
    """

    def __init__(
        self,
        trainer: Trainer,
        prefix: str,
        *,
        loss_only: bool,
        ignore_keys: Sequence[str] | None,
        is_told: bool = True,
    ) -> None:
        self.trainer = trainer
        self.args = trainer.args
        self.ranks = trainer.ranks
        self.prefix = prefix
        self.loss_only = loss_only
        self.is_told = is_told
        self.ignore_keys = list(ignore_keys) if ignore_keys is not None else None
        self.streams_metrics = self.args.batch_eval_metrics and trainer.compute_metrics is not None and not loss_only
        self.loss_sum: Any = 0.0
        self.num_targets: Any = 0
        self.num_rows = 0
        self.num_batches = 0
        self.held: EvalPrediction | None = None
        self.streamed_metrics: Mapping[str, Any] = {}

    def run(self, loader: DataLoader[Any]) -> EvalLoopOutput:
        """Evaluates every row of `loader` and gives predictions, labels and metrics of all ranks."""
        started = perf_counter()
        refuse_unshared(self.trainer, loader, "get_eval_dataloader")
        batches = stream(loader)
        self.is_dealt_singly = batches.is_dealt_singly
        flush_every = 1 if self.ranks.device.type == "cpu" else self.args.eval_accumulation_steps
        kind = Collector if self.args.eval_do_concat_batches else BatchCollector
        self.collectors = {name: kind(batches.num_rows, flush_every) for name in EvalPrediction.__annotations__}
        is_told = self.is_told and self.trainer.bus.listens("on_prediction_step")
        with self.trainer.evaluation_model() as model, torch.no_grad():
            for inputs in batches.epoch(0):
                self._evaluate_batch(model, inputs)
                if is_told:
                    self.trainer.bus.tell("on_prediction_step", trainer=self.trainer)
        outputs = self._outputs()
        metrics = self._metrics(outputs)
        return self._result(outputs, metrics, perf_counter() - started)

    def _evaluate_batch(self, model: torch.nn.Module, inputs: Any) -> None:
        """Goes forward with one batch, adds up its loss, and keeps or streams what it gave."""
        trainer = self.trainer
        rows = batch_size_of(inputs)
        targets = count_targets(inputs, trainer.label_names, shifted=trainer.is_shifted)
        if self.ranks.device.type != "cpu":
            inputs = to_device(inputs, self.ranks.device)
        main_input = trainer.main_input(inputs) if "inputs" in self.args.include_for_metrics else None
        loss, logits, labels = trainer.prediction_step(model, inputs, self.loss_only, self.ignore_keys)
        self.num_rows += rows
        self.num_batches += 1
        loss = None if loss is None else loss.detach().mean()
        if loss is not None and targets:  # a mean over nothing is NaN
            self.loss_sum += loss.item() * targets if self.ranks.device.type == "cpu" else loss.double() * targets
            self.num_targets += targets
        if self.loss_only:
            return
        if trainer.preprocess_logits_for_metrics is not None and logits is not None:
            logits = self._preprocessed(trainer.preprocess_logits_for_metrics, logits, labels)
        losses = loss.repeat(rows) if loss is not None and "loss" in self.args.include_for_metrics else None
        self._keep(EvalPrediction(logits, labels, main_input, losses))

    def _preprocessed(self, preprocess: Callable[[Any, Any], Any], logits: Any, labels: Any) -> Any:
        try:
            return preprocess(logits, labels)
        except Exception as error:
            error.add_note(self._where("preprocess_logits_for_metrics"))
            raise

    def _where(self, function: str) -> str:
        return f"raised in {function}, in the evaluation at step {self.trainer.state.global_step}"

    def _keep(self, batch: EvalPrediction) -> None:
        if self.streams_metrics:
            self._stream(batch)
            return
        for name, collector in self.collectors.items():
            collector.add(getattr(batch, name))

    def _stream(self, batch: EvalPrediction | None) -> bool:
        """Hands the batches of all ranks to `compute_metrics`, one call each; the last waits for `compute_result`.

        Ranks may have different numbers of batches: one that is done hands over None until all are.
        """
        host = (
            None
            if batch is None
            else EvalPrediction(*(map_tree(as_array, getattr(batch, name)) for name in self.collectors))
        )
        shares = [share for share in self.ranks.gather_objects(host) if share is not None]
        for share in shares:
            if self.held is not None:
                self._call_metrics(self.held, compute_result=False)
            self.held = share
        return bool(shares)

    def _outputs(self) -> EvalPrediction:
        """Gives the arrays of all ranks."""
        if self.streams_metrics:
            while self._stream(None):
                pass
            if self.held is not None:
                self.streamed_metrics = self._call_metrics(self.held, compute_result=True)
            return EvalPrediction(None, None)
        arrays = {name: collector.arrays() for name, collector in self.collectors.items()}
        shares = self.ranks.gather_objects(arrays)
        if not self.args.eval_do_concat_batches:
            by_turns = self.is_dealt_singly
            return EvalPrediction(
                **{name: chained([share[name] for share in shares], by_turns=by_turns) for name in arrays}
            )
        joined = {name: concatenated([share[name] for share in shares]) for name in arrays}
        if self.is_dealt_singly and len(shares) > 1:
            order = restore_order(self.ranks.gather_objects(self.num_rows))
            joined = map_tree(lambda rows: rows[order], joined)
        return EvalPrediction(**joined)

    def _metrics(self, outputs: EvalPrediction) -> Mapping[str, Any]:
        if self.streams_metrics:
            return self.streamed_metrics
        if self.trainer.compute_metrics is None or self.loss_only:
            return {}
        if outputs.predictions is None or outputs.label_ids is None:
            return {}
        return self._call_metrics(outputs)

    def _call_metrics(self, prediction: EvalPrediction, **more: bool) -> Mapping[str, Any]:
        assert self.trainer.compute_metrics is not None
        try:
            metrics = self.trainer.compute_metrics(prediction, **more)
        except Exception as error:
            error.add_note(self._where("compute_metrics"))
            raise
        if not isinstance(metrics, Mapping) and more.get("compute_result", True):
            raise DataError(
                f"compute_metrics: must return a mapping from names to numbers, got {type(metrics).__name__}. "
                f"Return for example {{'accuracy': 0.9}}."
            )
        if named := [name for name in metrics or () if not isinstance(name, str)]:
            raise DataError(f"compute_metrics: its names must be strings, got {named[0]!r}. Name each metric.")
        return metrics

    def _result(self, outputs: EvalPrediction, metrics: Mapping[str, Any], seconds: float) -> EvalLoopOutput:
        loss_sum, num_targets, num_rows, num_batches = self.ranks.sum_of_numbers(
            float(self.loss_sum), float(self.num_targets), self.num_rows, self.num_batches
        )
        if num_rows == 0:
            raise DataError(f"{self.prefix}: the dataset is empty. Pass a dataset with at least one row.")
        named: dict[str, Any] = {}
        if num_targets:
            named["loss"] = loss_sum / num_targets
        named |= {name: plain(value) for name, value in metrics.items()}
        named |= {
            "runtime": round(seconds, 4),
            "samples_per_second": round(num_rows / seconds, 3),
            "steps_per_second": round(num_batches / seconds, 3),
        }
        prefixed = {
            name if name.startswith(f"{self.prefix}_") else f"{self.prefix}_{name}": v for name, v in named.items()
        }
        return EvalLoopOutput(outputs.predictions, outputs.label_ids, prefixed, int(num_rows))


def plain(value: Any) -> Any:
    """Gives a metric as what JSON can hold: numbers of numpy and torch as Python's, arrays as lists."""
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
