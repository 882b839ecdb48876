"""Which rows a rank reads, in which order.

One epoch's order is a pure function of (seed, epoch), so a position in a run is three numbers: epoch, micro-batch,
and nothing else. With W ranks of B samples, global micro-batch j is order[j*W*B : (j+1)*W*B] and rank r owns
[r*B : (r+1)*B] of it: samples are trained on in that order on any number of ranks. The short tail is dealt as evenly
as it goes; a rank that gets nothing of it reads one real sample as *padding*, to be trained with weight 0, so that
every rank makes the same number of micro-batches.

Evaluation rows are dealt without padding and without shuffling: rank r reads one contiguous block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from trainer_core.data.seeding import Purpose, mix
from trainer_core.errors import DataError
from trainer_core.settings.options import SamplingStrategy

Rows = npt.NDArray[np.int64]

MEGABATCH: Final = 50
"""Global micro-batches that are sorted by length together."""


class BatchIndices(list[int]):
    """The rows of one micro-batch, with its place in the run.

    Attributes:
        rows: the same rows as an array, for indexing tensors without a conversion.
        epoch: epoch the micro-batch belongs to, from 0.
        number: place in its epoch, from 0.
    """

    __slots__ = ("epoch", "number", "rows")

    def __init__(self, rows: Rows, epoch: int, number: int) -> None:
        super().__init__(rows.tolist())
        self.rows = rows
        self.epoch = epoch
        self.number = number

    def __reduce__(self) -> tuple[type[BatchIndices], tuple[Rows, int, int]]:
        return type(self), (self.rows, self.epoch, self.number)


class _Order(Sampler[list[int]]):
    """Micro-batches of one rank, from any position of any epoch."""

    num_batches: int
    _epoch = 0
    _start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Makes the next iteration give `epoch` from micro-batch `start` on."""
        self._epoch = epoch
        self._start = start

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches(self._epoch, self._start)  # bound now, not when the first batch is asked for

    def rows_of(self, epoch: int, start: int, stop: int) -> list[int]:
        """Gives the rows of the micro-batches from `start` to before `stop` of `epoch`, one behind the other."""
        return [row for batch in islice(self._batches(epoch, start), stop - start) for row in batch]

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        raise NotImplementedError


class EpochOrder(_Order):
    """The micro-batches of one rank, for use as a `batch_sampler`.

    Args:
        length: samples in the dataset.
        batch_size: samples a micro-batch on one rank.
        seed: together with the epoch it gives the order.
        strategy: `random`, `sequential`, or `group_by_length`.
        lengths: length of every sample; needed by `group_by_length`.
        world_size: ranks that share the dataset.
        rank: this rank.
        drop_last: whether to leave out the short tail of an epoch.
        run_window: samples a micro-batch over all ranks had when the run began, by which the tail is measured and
            samples of like length are sorted; None for those of now.

    Raises:
        DataError: the dataset is empty, or `drop_last` leaves nothing of it.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        strategy: SamplingStrategy = "random",
        lengths: Sequence[int] | None = None,
        world_size: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        run_window: int | None = None,
    ) -> None:
        window = batch_size * world_size
        run_window = run_window or window
        _check_size(length, run_window, drop_last)
        if strategy == "group_by_length" and (lengths is None or len(lengths) != length):
            raise DataError(
                f"train_sampling_strategy: group_by_length needs one length for each of {length} samples, "
                f"got {'none' if lengths is None else len(lengths)}. Pass the column `length_column_name` names."
            )
        self._length = length
        self._batch_size = batch_size
        self._window = window
        self._run_window = run_window
        self._used = length // run_window * run_window if drop_last else length
        self._seed = seed
        self._strategy: SamplingStrategy = strategy
        self._kept: tuple[int, Rows] | None = None
        self._lengths = None if lengths is None else np.asarray(lengths, dtype=np.int64)
        self._world_size = world_size
        self._rank = rank
        self._tail = self._used % window
        self.num_batches: int = -(-self._used // window)
        """Micro-batches an epoch, the same on all ranks."""
        self.num_windows: int = -(-self._used // run_window)
        """Micro-batches an epoch when the run began."""
        self.last_is_padding: bool = 0 < self._tail <= rank
        """Whether this rank's last micro-batch is padding."""
        share = tail_share(self._tail, world_size, rank) if self._tail else range(0)
        self.num_rows: int = self._used // window * batch_size + len(share)
        """Samples an epoch on this rank, padding included."""

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        order, window, size = self.order(epoch), self._window, self._batch_size
        whole = self._used // window
        first = self._rank * size
        for number in range(start, whole):
            begin = number * window + first
            yield BatchIndices(order[begin : begin + size], epoch, number)
        if self._tail and start <= whole:
            share = tail_share(self._tail, self._world_size, self._rank)
            yield BatchIndices(order[whole * window : self._used][share.start : share.stop], epoch, whole)

    def order(self, epoch: int) -> Rows:
        """Gives every row of the dataset in the order of `epoch`; the last one asked for is kept."""
        if self._kept is None or self._kept[0] != epoch:
            self._kept = epoch, self._order_of(epoch)
        return self._kept[1]

    def _order_of(self, epoch: int) -> Rows:
        if self._strategy == "sequential":
            return np.arange(self._length, dtype=np.int64)
        generator = torch.Generator().manual_seed(mix(self._seed, Purpose.ORDER, epoch))
        order: Rows = torch.randperm(self._length, generator=generator).numpy()
        if self._lengths is not None and self._strategy == "group_by_length":
            return _grouped(order, self._lengths, self._run_window)
        return order


class EvalOrder(_Order):
    """The evaluation micro-batches of one rank: its rows in sequence, none left out, the same in every epoch."""

    def __init__(self, rows: range, batch_size: int) -> None:
        self.rows = rows
        self._batch_size = batch_size
        self.num_rows: int = len(rows)
        """Rows of this rank."""
        self.num_batches: int = -(-len(rows) // batch_size)
        """Micro-batches of this rank; ranks may differ."""
        self.num_windows: int = self.num_batches
        """The same: nothing is resumed in an evaluation."""
        self.last_is_padding: bool = False
        """Never: evaluation has no padding."""

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        order = np.arange(self.rows.start, self.rows.stop, dtype=np.int64)
        size = self._batch_size
        for number in range(start, self.num_batches):
            yield BatchIndices(order[number * size : (number + 1) * size], epoch, number)


def eval_rows(length: int, world_size: int, rank: int) -> range:
    """Gives the contiguous rows that `rank` evaluates; empty where there are more ranks than blocks."""
    block = -(-length // world_size)
    return range(min(rank * block, length), min((rank + 1) * block, length))


def restore_order(counts: Sequence[int]) -> Rows:
    """Gives the index that puts rows dealt one by one (row i to rank i % W) back into the order of the dataset.

    Args:
        counts: rows that each rank evaluated, in the order of ranks.

    Returns:
        Row numbers for `joined[restore_order(counts)]`, where `joined` has the ranks' rows one rank after another.
    """
    world_size = len(counts)
    row = np.concatenate([np.arange(count, dtype=np.int64) * world_size + rank for rank, count in enumerate(counts)])
    return np.argsort(row)


def tail_share(length: int, world_size: int, rank: int) -> range:
    """Gives the part of a short tail of `length` samples that `rank` trains on, or reads as padding."""
    if rank >= length:
        return range(rank % length, rank % length + 1)
    each, more = divmod(length, world_size)
    begin = rank * each + min(rank, more)
    return range(begin, begin + each + (rank < more))


def _check_size(length: int, window: int, drop_last: bool) -> None:
    if length == 0:
        raise DataError("train_dataset: has no samples, got length 0. Pass a dataset with at least one.")
    if drop_last and length < window:
        raise DataError(
            f"dataloader_drop_last: leaves nothing to train on, got {length} samples for batches of {window} over "
            "all ranks. Set it to False or lower per_device_train_batch_size."
        )


def _grouped(order: Rows, lengths: Rows, window: int) -> Rows:
    """Sorts runs of `order` by falling length, so that samples of like length share a batch.

    A run is MEGABATCH windows, or fewer where the dataset has under 4 runs of them, else little chance would be
    left. What is left over joins the last run. The longest sample is therefore first in its run; that window
    moves to the front, so that a batch too large for the memory shows at the first step.
    """
    run = max(1, min(MEGABATCH, len(order) // (4 * window))) * window
    starts = range(0, max(len(order) // run, 1) * run, run)
    stops = [*starts[1:], len(order)]
    runs = [order[start:stop] for start, stop in zip(starts, stops, strict=True)]
    grouped = np.concatenate([rows[np.argsort(-lengths[rows], kind="stable")] for rows in runs])
    longest = max(starts, key=lambda start: int(lengths[grouped[start]]))
    if longest:
        grouped[:window], grouped[longest : longest + window] = (
            grouped[longest : longest + window].copy(),
            grouped[:window].copy(),
        )
    return grouped
