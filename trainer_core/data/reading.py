"""Reading: the stream of micro-batches that the loop takes from a loader, from any position of any epoch.

Our own loaders restart their order at the position; without workers they are read past the DataLoader's iterator,
whose bookkeeping costs more than fetching a small batch. A user's own DataLoader is read as it is, with three cares:
its samplers are told the epoch, the batches before the position are skipped as indices (map-style data), and what
its sampler draws follows from (seed, epoch) instead of from the run's random state. What its samples draw is the
user's: without workers it comes from the run's state, with workers it is not the same after a cut.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from trainer_core.data.fetching import BatchFetcher, annotate
from trainer_core.data.sampling import EpochOrder, EvalOrder
from trainer_core.data.seeding import Lending, Purpose, mix
from trainer_core.data.streaming import PaddingBatch, SampleStream
from trainer_core.data.workers import started
from trainer_core.errors import DataError


class BatchStream(Protocol):
    """What the loop reads: the micro-batches of this rank, epoch by epoch."""

    num_batches: int | None
    """Micro-batches an epoch; None where the data has no length."""
    num_windows: int | None
    """Micro-batches an epoch had when the run began, with as many ranks as then; None where there is no length."""
    num_rows: int | None
    """Samples an epoch on this rank; None where that is not known (data without a length, a user's own loader)."""
    last_is_padding: bool
    """Whether this rank's last micro-batch of an epoch is padding, to be trained with weight 0.

    Known beforehand for map-style data; else it turns True with the micro-batch that is padding.
    """
    is_own: bool
    """Whether the loader is one of ours, whose order does not hang on the number of ranks."""
    is_dealt_singly: bool
    """Whether evaluation row i is on rank i % W (data without a length): `sampling.restore_order` tells the order."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Gives the micro-batches of `epoch` from `start` on; loads no item of a map-style dataset before it."""

    def rows_of(self, epoch: int, start: int, stop: int) -> list[int] | None:
        """Gives the rows of the dataset in this rank's micro-batches from `start` to before `stop` of `epoch`.

        None where they are not known (data without a length, a user's own loader). Loads no item.
        """


def stream(loader: Iterable[Any], *, seed: int = 0) -> BatchStream:
    """Gives the stream of any loader: our own, a user's DataLoader, or whatever gives batches when iterated.

    Args:
        loader: the loader.
        seed: what the sampler of a user's own DataLoader draws follows from it and the epoch.
    """
    if type(loader) is DataLoader and isinstance(loader.dataset, BatchFetcher):
        return _MapStream(loader)
    if type(loader) is DataLoader and isinstance(loader.dataset, SampleStream):
        return _ItemStream(loader)
    return _ForeignStream(loader, seed)


def is_shared_out(loader: Iterable[Any]) -> bool:
    """Tells whether ranks read shares of their own: in loaders of ours or Accelerate's, or by torch's sampler."""
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, BatchFetcher | SampleStream):
        return True
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return hasattr(loader, "base_dataloader") or any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def dead_worker(error: BaseException) -> DataError | None:
    """Gives our error for torch's when a dataloader worker died, else None.

    torch also raises it from a signal handler, in whatever line the main process is at.
    """
    if not isinstance(error, RuntimeError) or not re.search(r"DataLoader worker \(pid", str(error)):
        return None
    return DataError(
        f"dataloader_num_workers: a dataloader worker died, got {str(error).strip()!r}. Mostly memory ran out, or "
        "the dataset crashed or left the process: use fewer workers or smaller samples, more shared memory "
        "(/dev/shm), or dataloader_num_workers=0 to see the error itself."
    )


class _MapStream:
    """A loader of ours over a map-style dataset."""

    is_own = True
    is_dealt_singly = False

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._order = cast("EpochOrder | EvalOrder", loader.batch_sampler)
        self._fetch = cast("BatchFetcher", loader.dataset).fetch
        self._direct = loader.num_workers == 0 and not loader.pin_memory
        self.num_batches: int | None = self._order.num_batches
        self.num_windows: int | None = self._order.num_windows
        self.num_rows: int | None = self._order.num_rows
        self.last_is_padding = self._order.last_is_padding

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        self._order.set_epoch(epoch, start)
        if self._direct:
            return map(self._fetch, self._order)
        return _explaining(started(self._loader), epoch, start)

    def rows_of(self, epoch: int, start: int, stop: int) -> list[int] | None:
        return self._order.rows_of(epoch, start, stop)


class _ItemStream:
    """A loader of ours over a dataset without indices."""

    is_own = True
    is_dealt_singly = True

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._items = cast("SampleStream", loader.dataset)
        self._direct = loader.num_workers == 0 and not loader.pin_memory
        self.num_batches = self._items.num_batches()
        self.num_windows = self._items.num_windows()
        self.num_rows: int | None = None
        self.last_is_padding = False

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        self._items.set_epoch(epoch, start)
        self.last_is_padding = False
        batches = iter(self._items) if self._direct else _explaining(started(self._loader), epoch, start)
        return map(self._unpadded, batches)

    def rows_of(self, epoch: int, start: int, stop: int) -> list[int] | None:
        return None

    def _unpadded(self, batch: Any) -> Any:
        if isinstance(batch, PaddingBatch):
            self.last_is_padding = True
            return batch.batch
        return batch


class _ForeignStream:
    """A loader that a user made."""

    is_own = False
    is_dealt_singly = False
    last_is_padding = False

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.num_rows: int | None = None
        self._seed = seed
        self._sampler: _Restart | None = None
        self._loader, self._generators = loader, _generators(loader)
        if _has_index_sampler(loader):
            self._loader, self._sampler = _restartable(cast("DataLoader[Any]", loader), seed)
        try:
            self.num_batches: int | None = len(cast("Any", loader))
        except TypeError:
            self.num_batches = None
        self.num_windows = self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        _tell_epoch(self._loader, epoch)
        for generator, first in self._generators:
            generator.manual_seed(mix(first, epoch) if epoch else first)
        skip = start
        if self._sampler is not None:
            self._sampler.epoch, self._sampler.start, skip = epoch, start, 0
        if not isinstance(self._loader, DataLoader):
            return _explaining(islice(iter(self._loader), skip, None), epoch, start)
        with _lent(mix(self._seed, Purpose.LOADER, epoch)):
            batches = iter(self._loader)
        return _explaining(islice(batches, skip, None), epoch, start)

    def rows_of(self, epoch: int, start: int, stop: int) -> list[int] | None:
        return None


class _Restart:
    """A sampler that starts `start` draws into another; what that one draws first follows from (seed, epoch)."""

    def __init__(self, inner: Any, seed: int) -> None:
        self.inner = inner
        self.epoch = 0
        self.start = 0
        self._seed = seed

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        with _lent(mix(self._seed, Purpose.ORDER, self.epoch)):  # torch's samplers draw once, when they start
            draws = iter(self.inner)
            first = list(islice(draws, self.start, self.start + 1))
        yield from first
        yield from draws


def _has_index_sampler(loader: Iterable[Any]) -> bool:
    # accelerate's loaders iterate a loader that they hold, not themselves
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and not hasattr(loader, "base_dataloader")
    )


def _restartable(loader: DataLoader[Any], seed: int) -> tuple[DataLoader[Any], _Restart]:
    """Gives a copy of the loader with its (batch) sampler inside a `_Restart`."""
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    sampler = _Restart(getattr(loader, name), seed)
    twin = copy.copy(loader)
    # DataLoader refuses to have a sampler assigned after it was made; this copy is not iterated yet
    twin.__dict__.update({name: sampler, "_iterator": None})
    return twin, sampler


def _generators(loader: Iterable[Any]) -> list[tuple[torch.Generator, int]]:
    """Gives the generators of the user's loader and sampler, each with the seed that the user gave it."""
    holders = (loader, getattr(loader, "sampler", None))
    found = {id(g): g for g in (getattr(holder, "generator", None) for holder in holders) if g is not None}
    return [(generator, generator.initial_seed()) for generator in found.values()]


def _tell_epoch(loader: Any, epoch: int) -> None:
    batch_sampler = getattr(loader, "batch_sampler", None)
    batch_sampler = getattr(batch_sampler, "inner", batch_sampler)
    sampler = getattr(loader, "sampler", None)
    holders = (loader, getattr(sampler, "inner", sampler), batch_sampler, getattr(loader, "dataset", None))
    for holder in {id(holder): holder for holder in (*holders, getattr(batch_sampler, "sampler", None))}.values():
        if callable(set_epoch := getattr(holder, "set_epoch", None)):
            set_epoch(epoch)


@contextmanager
def _lent(seed: int) -> Iterator[None]:
    """Lets code draw from generators seeded with `seed`, and puts the run's states back."""
    lending = Lending(seed_all=True)
    lending.hold()
    try:
        lending.seed(seed)
        yield
    finally:
        lending.release()


def _explaining(batches: Iterator[Any], epoch: int, start: int) -> Iterator[Any]:
    number = start
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            if (dead := dead_worker(error)) is not None:
                dead.add_note(f"while waiting for micro-batch {number}, epoch {epoch}")
                raise dead from error
            annotate(error, f"while fetching micro-batch {number}, epoch {epoch}")
            raise
        yield batch
        number += 1
