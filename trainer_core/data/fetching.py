"""Fetching: from the rows of a micro-batch to the batch, in the main process or in a worker, with equal results.

`BatchFetcher` stands as the dataset of a DataLoader and gives whole batches. What its dataset and collator draw at
random is governed by `seeding`: nothing is seeded where nothing is drawn, and TensorDataset, lists, tuples and
`datasets.Dataset` without a transform, with our own collators, are known to draw nothing and are not even watched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from trainer_core.data.collation import Collate, default_data_collator, is_own_collator
from trainer_core.data.columns import ColumnFilter
from trainer_core.data.sampling import BatchIndices, Rows
from trainer_core.data.seeding import Lending, Purpose, mix
from trainer_core.errors import DataError

Fetch = Callable[[Any], Any]


class BatchFetcher(Dataset[Any]):
    """A map-style dataset with its collator: takes `BatchIndices`, gives the batch.

    Args:
        dataset: the user's dataset.
        collate: makes a batch of samples.
        seed: together with epoch and index it gives what a sample draws.
        rank: this rank; ranks draw differently in the collator.
        training: False for evaluation, which draws other numbers.
    """

    def __init__(self, dataset: Any, collate: Collate, *, seed: int, rank: int = 0, training: bool = True) -> None:
        self.dataset = dataset
        self.collate = collate
        self._seed = seed
        self._rank = rank
        self._purpose = "training" if training else "evaluation"
        self._sample_purpose = Purpose.SAMPLE if training else Purpose.EVAL_SAMPLE
        self._collate_purpose = Purpose.COLLATE if training else Purpose.EVAL_COLLATE
        self._read: Callable[[BatchIndices], Any] = _reader(dataset)
        self._collate = collate
        if _unfiltered(collate) is default_data_collator and (rows_of := _tensor_reader(dataset)):  # rows are tuples
            self._read, self._collate = rows_of, as_it_is
        self._set_epoch: Callable[[int], object] | None = getattr(dataset, "set_epoch", None)
        self._epoch = -1
        self._lending: Lending | None = None
        quiet = _draws_nothing(dataset) and _collates_quietly(collate) and self._set_epoch is None
        self.fetch: Fetch = self._fetch_quietly if quiet else self._fetch_lending
        """Gives the batch of some `BatchIndices`."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> Any:
        """Gives the batch (DataLoader's name for a batched fetch)."""
        return self.fetch(indices)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lending": None}  # a worker has random states of its own

    def _fetch_quietly(self, indices: BatchIndices) -> Any:
        try:
            return self._joined(self._collate, self._read(indices))
        except Exception as error:
            annotate(error, self._place(indices))
            raise

    def _fetch_lending(self, indices: BatchIndices) -> Any:
        lending = self._lending = self._lending or Lending()
        if self._set_epoch is not None and self._epoch != indices.epoch:
            self._set_epoch(indices.epoch)
            self._epoch = indices.epoch
        while True:
            lending.hold()
            try:
                batch = (
                    self._seeded(lending, indices)
                    if lending.seeding
                    else self._joined(self._collate, self._read(indices))
                )
            except Exception as error:
                if not lending.release():
                    annotate(error, self._place(indices))
                    raise
            except BaseException:
                lending.release()
                raise
            else:
                if not lending.release():
                    return batch

    def _seeded(self, lending: Lending, indices: BatchIndices) -> Any:
        base = mix(self._seed, self._sample_purpose, indices.epoch)
        samples = []
        for index in indices:
            lending.seed(mix(base, index))
            samples.append(self.dataset[index])
        lending.seed(mix(self._seed, self._collate_purpose, indices.epoch, indices.number, self._rank))
        return self._joined(self.collate, samples)

    @staticmethod
    def _joined(collate: Collate, samples: Any) -> Any:
        try:
            return collate(samples)
        except Exception as error:
            annotate(error, "raised in data_collator")
            raise

    def _place(self, indices: BatchIndices) -> str:
        return (
            f"while fetching samples {list(indices)} of {self._purpose} micro-batch {indices.number}, "
            f"epoch {indices.epoch}"
        )


def annotate(error: Exception, place: str) -> None:
    """Adds to the user's error a note of where in the run it happened.

    Raises:
        DataError: `error` is a StopIteration, which would end the epoch as if all data were read.
    """
    if isinstance(error, StopIteration):
        raise DataError(f"dataset: raised StopIteration {place}. Catch it there.") from error
    error.add_note(place)


def _reader(dataset: Any) -> Callable[[BatchIndices], Any]:
    if hasattr(dataset, "__getitems__"):
        return cast("Callable[[BatchIndices], Any]", dataset.__getitems__)
    return partial(_item_by_item, dataset.__getitem__)


def _item_by_item(item: Callable[[int], Any], indices: BatchIndices) -> list[Any]:
    return [item(index) for index in indices]


def _tensor_reader(dataset: Any) -> Callable[[BatchIndices], Any] | None:
    """Gives a reader that indexes each tensor once a batch, which equals stacking its rows."""
    if type(dataset) is TensorDataset:
        return partial(_rows_of, dataset.tensors)
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        chosen = np.asarray(dataset.indices, dtype=np.int64)
        chosen = np.where(chosen < 0, chosen + len(dataset.dataset), chosen)
        return partial(_chosen_rows_of, dataset.dataset.tensors, chosen)
    return None


def _rows_of(tensors: tuple[torch.Tensor, ...], indices: BatchIndices) -> tuple[torch.Tensor, ...]:
    rows = torch.from_numpy(indices.rows)
    return tuple([tensor.index_select(0, rows.to(tensor.device)) for tensor in tensors])


def _chosen_rows_of(tensors: tuple[torch.Tensor, ...], chosen: Rows, indices: BatchIndices) -> tuple[torch.Tensor, ...]:
    rows = torch.from_numpy(chosen[indices.rows])
    return tuple([tensor.index_select(0, rows.to(tensor.device)) for tensor in tensors])


def as_it_is(batch: Any) -> Any:
    """Gives the batch: the `collate_fn` of a loader whose dataset collates."""
    return batch


def _collates_quietly(collate: Collate) -> bool:
    return is_own_collator(_unfiltered(collate))


def _unfiltered(collate: Collate) -> Collate:
    """Gives the collator that a filter of columns, which passes rows that are tuples as they are, hands on to."""
    return collate.collate if isinstance(collate, ColumnFilter) else collate


def _draws_nothing(dataset: Any) -> bool:
    kind = type(dataset)
    if kind in (list, tuple, range, TensorDataset):
        return True
    if kind is Subset:
        return _draws_nothing(dataset.dataset)
    if kind is ConcatDataset:
        return all(map(_draws_nothing, dataset.datasets))
    if kind.__module__.startswith("datasets."):
        return bool(getattr(dataset, "format", {}).get("type", "custom") != "custom")  # "custom" is a transform
    return False
