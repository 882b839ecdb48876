"""Datasets without indices: the batches of one rank from a stream of items.

Training deals a stream in the windows that map-style data has (see `sampling`): every rank reads all items and
keeps its share. Evaluation deals item i to rank i % W, so its number is known and no two ranks evaluate one item;
`sampling.restore_order` puts results back in order. Whatever the dataset draws while it makes item i follows from
(seed, epoch, i); every generator is seeded before each item, for an iterator cannot be asked for an item twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch
from torch.utils.data import IterableDataset

from trainer_core.data.collation import Collate
from trainer_core.data.fetching import annotate
from trainer_core.data.sampling import tail_share
from trainer_core.data.seeding import Lending, Purpose, mix
from trainer_core.errors import DataError

_END: Final = object()


class PaddingBatch(NamedTuple):
    """The batch of a rank that got nothing of a stream's short tail: real samples, to be trained with weight 0."""

    batch: Any


class SampleStream(IterableDataset[Any]):
    """An iterable dataset with its collator: gives the batches of one rank.

    Args:
        dataset: the user's dataset; told the epoch when it has `set_epoch`.
        collate: makes a batch of samples.
        batch_size: samples a micro-batch on one rank.
        seed: together with epoch and item number it gives what an item draws.
        world_size: ranks that share the stream.
        rank: this rank.
        drop_last: whether to leave out the short tail of an epoch.
        training: False for evaluation.
        run_window: samples a micro-batch over all ranks had when the run began, by which the tail is measured; None for
            those of now.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Collate,
        *,
        batch_size: int,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        training: bool = True,
        run_window: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self._batch_size = batch_size
        self._window = batch_size * world_size
        self._run_window = run_window or self._window
        self._read_together = self._run_window if drop_last else self._window
        self._seed = seed
        self._world_size = world_size
        self._rank = rank
        self._drop_last = drop_last
        self._training = training
        self._purpose = "training" if training else "evaluation"
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # type: ignore[no-untyped-call]  # a persistent worker reads it too

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Makes the next iteration give `epoch` from micro-batch `start` on."""
        self._position[0] = epoch
        self._position[1] = start

    def num_batches(self) -> int | None:
        """Gives the micro-batches an epoch, or None where the dataset has no length."""
        length = self._length()
        if length is None or self._training:
            return self._windows_of(length, self._window)
        mine = len(range(self._rank, length, self._world_size))
        return -(-mine // self._batch_size)

    def num_windows(self) -> int | None:
        """Gives the micro-batches an epoch of training when the run began."""
        return self._windows_of(self._length(), self._run_window)

    def _length(self) -> int | None:
        try:
            return len(self.dataset)
        except (TypeError, NotImplementedError):
            return None

    def _windows_of(self, length: int | None, window: int) -> int | None:
        if length is None:
            return None
        used = length // self._run_window * self._run_window if self._drop_last else length
        return -(-used // window)

    def __iter__(self) -> Iterator[Any]:
        return self._batches(*map(int, self._position))

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        lending = Lending(seed_all=True)
        windows = self._read(lending, epoch)
        for number, window in enumerate(self._without_tail(windows) if self._drop_last else windows):
            if number >= start and (batch := self._batch(lending, window, epoch, number)) is not None:
                yield batch

    def _without_tail(self, windows: Iterator[list[Any]]) -> Iterator[list[Any]]:
        """Gives the items that filled micro-batches when the run began, in windows of now."""
        kept: list[Any] = []
        for window in windows:
            kept += window if len(window) == self._read_together else ()
            while len(kept) >= self._window:
                yield kept[: self._window]
                del kept[: self._window]
        if kept:
            yield kept

    def _check_size(self, length: int, epoch: int) -> None:
        if length == 0:
            raise DataError(
                f"{self._purpose} dataset: gave no sample in epoch {epoch}. Pass one that does, and that can be "
                "iterated once for each epoch (a generator can be read only once)."
            )
        if self._drop_last and length < self._run_window:
            raise DataError(
                f"dataloader_drop_last: leaves nothing to train on, got {length} samples for batches of "
                f"{self._run_window} over all ranks. Set it to False or lower per_device_train_batch_size."
            )

    def _read(self, lending: Lending, epoch: int) -> Iterator[list[Any]]:
        """Gives the items of one global micro-batch after another, each item made under its own random state."""
        base = mix(self._seed, Purpose.SAMPLE if self._training else Purpose.EVAL_SAMPLE, epoch)
        items = self._started(lending, base, epoch)
        number, size = 0, self._read_together
        while True:
            window: list[Any] = []
            lending.hold()
            try:
                for index in range(number * size, (number + 1) * size):
                    lending.seed(mix(base, index))
                    item = next(items, _END)
                    if item is _END:
                        break
                    window.append(item)
            except Exception as error:
                place = f"while reading item {number * size + len(window)} of the {self._purpose} dataset, "
                annotate(error, f"{place}micro-batch {number}, epoch {epoch}")
                raise
            finally:
                lending.release()
            if window:
                yield window
            if len(window) < size:
                return self._check_size(number * size + len(window), epoch)
            number += 1

    def _started(self, lending: Lending, base: int, epoch: int) -> Iterator[Any]:
        lending.hold()
        try:
            lending.seed(base)
            return iter(self.dataset)
        except Exception as error:
            annotate(error, f"while starting the {self._purpose} dataset, epoch {epoch}")
            raise
        finally:
            lending.release()

    def _batch(self, lending: Lending, window: list[Any], epoch: int, number: int) -> Any:
        samples, padding = self._share(window)
        if not samples:
            return None
        lending.hold()
        try:
            purpose = Purpose.COLLATE if self._training else Purpose.EVAL_COLLATE
            lending.seed(mix(self._seed, purpose, epoch, number, self._rank))
            batch = self.collate(samples)
        except Exception as error:
            annotate(error, f"while collating {self._purpose} micro-batch {number}, epoch {epoch}")
            raise
        finally:
            lending.release()
        return PaddingBatch(batch) if padding else batch

    def _share(self, window: list[Any]) -> tuple[list[Any], bool]:
        """Gives this rank's samples of a window, and whether they are padding."""
        if not self._training:
            return window[self._rank :: self._world_size], False
        if len(window) == self._window:
            return window[self._rank * self._batch_size :][: self._batch_size], False
        share = tail_share(len(window), self._world_size, self._rank)
        return window[share.start : share.stop], self._rank >= len(window)
