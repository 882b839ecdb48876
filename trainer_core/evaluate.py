"""Evaluation and prediction: every row once, in order, at a cost that grows with the rows and no faster.

Predictions are written into one growing buffer per output, never concatenated again. The loss is the sum over
targets divided by their count, so that no batch size changes it. Each rank evaluates a contiguous share of the rows;
the shares are put together at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from trainer_core.collection import BatchCollector, Collector, chained, concatenated, map_tree
from trainer_core.data.batches import batch_size_of, count_targets, to_device
from trainer_core.data.reading import BatchStream, stream
from trainer_core.data.sampling import restore_order
from trainer_core.errors import DataError
from trainer_core.metrics import EvalPrediction, Metrics, metrics_of, plain
from trainer_core.modes import refuse_unshared
from trainer_core.phases import Phase

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from trainer_core.trainer import Trainer


_END: Final = object()


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
        is_told: plugins hear of each batch; else it is a rehearsal.
        keeps_outputs: predictions are kept though metrics take batches and need no others.
    """

    def __init__(
        self,
        trainer: Trainer,
        prefix: str,
        *,
        loss_only: bool,
        ignore_keys: Sequence[str] | None,
        is_told: bool = True,
        keeps_outputs: bool = False,
    ) -> None:
        self.trainer = trainer
        self.args = trainer.args
        self.ranks = trainer.ranks
        self.prefix = prefix
        self.loss_only = loss_only
        self.is_told = is_told
        self.is_measured = is_told and not trainer.is_in_train
        self.ignore_keys = list(ignore_keys) if ignore_keys is not None else None
        self.metrics = None if loss_only else self._metrics_of_user()
        self.streams_metrics = self.metrics is not None and self.metrics.takes_batches
        self.keeps_outputs = not loss_only and (keeps_outputs or not self.streams_metrics)
        self.is_fed = False
        self.loss_sum: Any = 0.0
        self.num_targets: Any = 0
        self.num_rows = 0
        self.num_batches = 0

    def run(self, loader: DataLoader[Any]) -> EvalLoopOutput:
        """Evaluates every row of `loader` and gives predictions, labels and metrics of all ranks."""
        self.started = perf_counter()
        if self.is_measured:
            self.trainer.memory.begin()
        refuse_unshared(self.trainer, loader, "get_eval_dataloader")
        batches = stream(loader)
        self.is_dealt_singly = batches.is_dealt_singly
        flush_every = 1 if self.ranks.device.type == "cpu" else self.args.eval_accumulation_steps
        kind = Collector if self.args.eval_do_concat_batches else BatchCollector
        self.collectors = {name: kind(batches.num_rows, flush_every) for name in EvalPrediction.__annotations__}
        is_told = self.is_told and self.trainer.bus.listens("on_prediction_step")
        with self.trainer.evaluation_model() as model, torch.no_grad():
            for inputs in self._interruptible(batches):
                self._evaluate_batch(model, inputs)
                if is_told:
                    self.trainer.bus.tell("on_prediction_step", trainer=self.trainer)
        outputs = self._outputs() if self.keeps_outputs else EvalPrediction(None, None)
        return self._result(outputs, self._metrics(outputs))

    def _interruptible(self, batches: BatchStream) -> Iterator[Any]:
        """Gives the batches; in a run, a signal to end it is served while one is awaited, and after each."""
        trainer = self.trainer
        iterator = batches.epoch(0)
        loop = trainer.running.loop if trainer.running is not None and trainer.is_in_train else None
        if loop is None or loop.phase is not Phase.EVAL or not self.is_told:
            yield from iterator
            return
        common = min(self.ranks.gather_objects(batches.num_batches or 0))
        for number in count(1):
            loop.is_waiting = self.ranks.world_size == 1
            inputs = next(iterator, _END)
            loop.is_waiting = False
            if inputs is _END:
                return
            yield inputs
            loop.safe_point(number, common)

    def _metrics_of_user(self) -> Metrics | None:
        if self.trainer.compute_metrics is None:
            return None
        in_batches = self.args.batch_eval_metrics
        return metrics_of(self.trainer.compute_metrics, self.ranks.device, in_batches=in_batches)

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
        with self._named("preprocess_logits_for_metrics"):
            return preprocess(logits, labels)

    @contextmanager
    def _named(self, function: str) -> Iterator[None]:
        """Says in an error of the user's function which one it is, and when."""
        try:
            yield
        except Exception as error:
            error.add_note(f"raised in {function}, in the evaluation at step {self.trainer.state.global_step}")
            raise

    def _keep(self, batch: EvalPrediction) -> None:
        if self.streams_metrics:
            self._stream([batch.settled()] if batch.is_complete else [])
        if self.keeps_outputs:
            for name, collector in self.collectors.items():
                collector.add(getattr(batch, name))

    def _stream(self, batches: list[EvalPrediction] | None) -> bool:
        """Hands the batches of all ranks to the metrics, each once, in the same order on every rank.

        Ranks may have different numbers of batches: one that is done hands over None until all are.
        """
        assert self.metrics is not None
        shares = self._shares(batches)
        for batch in (batch for share in shares if share is not None for batch in share):
            with self._named("compute_metrics"):
                self.metrics.add(batch)
            self.is_fed = True
        return any(share is not None for share in shares)

    def _shares(self, batches: list[EvalPrediction] | None) -> list[list[EvalPrediction] | None]:
        """Gives the batches of every rank, on this rank's device."""
        if self.ranks.world_size == 1:
            return [batches]
        host = batches and [batch.on_host() for batch in batches]
        shares: list[list[EvalPrediction] | None] = self.ranks.gather_objects(host)
        return [share and [batch.on(self.ranks.device) for batch in share] for share in shares]

    def _outputs(self) -> EvalPrediction:
        """Gives the arrays of all ranks.

        Raises:
            DataError: some batches gave what others did not, so that rows would not fit.
        """
        for name, collector in self.collectors.items():
            if 0 < collector.batches < self.num_batches:
                raise DataError(
                    f"evaluation: {collector.batches} of {self.num_batches} batches give {name}. "
                    f"Give them with every batch or with none, or set prediction_loss_only."
                )
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
        """Gives what the user's metrics say; nothing where there are no predictions or no labels."""
        if self.metrics is None:
            return {}
        if self.streams_metrics:
            while self._stream(None):
                pass
        elif outputs.is_complete:
            self.metrics.add(outputs)
            self.is_fed = True
        if not self.is_fed:
            return {}
        with self._named("compute_metrics"):
            metrics = self.metrics.result()
        if not isinstance(metrics, Mapping):
            raise DataError(
                f"compute_metrics: must return a mapping from names to numbers, got {type(metrics).__name__}. "
                f"Return for example {{'accuracy': 0.9}}."
            )
        if named := [name for name in metrics if not isinstance(name, str)]:
            raise DataError(f"compute_metrics: its names must be strings, got {named[0]!r}. Name each metric.")
        return metrics

    def _result(self, outputs: EvalPrediction, metrics: Mapping[str, Any]) -> EvalLoopOutput:
        loss_sum, num_targets, num_rows, num_batches = self.ranks.sum_of_numbers(
            float(self.loss_sum), float(self.num_targets), self.num_rows, self.num_batches
        )
        if num_rows == 0:
            raise DataError(f"{self.prefix}: the dataset is empty. Pass a dataset with at least one row.")
        seconds = perf_counter() - self.started
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
        if self.is_measured:
            prefixed |= self.trainer.memory.take(self.prefix)
        return EvalLoopOutput(outputs.predictions, outputs.label_ids, prefixed, int(num_rows))
