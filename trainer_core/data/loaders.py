"""Building: the loader of this rank's training or evaluation data, from a dataset, a collator and the settings.

A loader is a plain torch DataLoader whose dataset gives whole batches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainer_core.data.collation import Collate
from trainer_core.data.columns import ModelColumns, drop_unused_columns, sample_lengths
from trainer_core.data.fetching import BatchFetcher, as_it_is
from trainer_core.data.sampling import EpochOrder, EvalOrder, eval_rows
from trainer_core.data.seeding import Lending, Purpose, mix
from trainer_core.data.streaming import SampleStream
from trainer_core.data.workers import leave_signals
from trainer_core.errors import DataError

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments

logger = logging.getLogger("trainer_core.data")


def build_train_loader(
    dataset: Any,
    collate: Collate,
    args: TrainingArguments,
    *,
    device: torch.device,
    world_size: int = 1,
    rank: int = 0,
    columns: ModelColumns | None = None,
    run_window: int | None = None,
) -> DataLoader[Any]:
    """Builds the loader of this rank's training micro-batches.

    Args:
        dataset: map-style, or iterable.
        collate: makes a batch of samples.
        args: the settings.
        device: where training happens; memory is pinned for an accelerator only.
        world_size: ranks that share the dataset.
        rank: this rank.
        columns: what the model takes; other columns are dropped unless `remove_unused_columns` is off.
        run_window: samples a micro-batch over all ranks had when the run began; None for those of now.

    Raises:
        DataError: the dataset is empty, cannot be indexed or measured, or has no column that the model takes.
    """
    grouped = args.train_sampling_strategy == "group_by_length"
    if _is_stream(dataset):
        if grouped:
            raise DataError(
                "train_sampling_strategy: group_by_length needs a dataset with a length, got "
                f"{type(dataset).__name__}. Use 'random'."
            )
        dealt = {"world_size": world_size, "rank": rank, "training": True, "run_window": run_window}
        return _stream_loader(dataset, collate, args, device, columns, dealt)
    length = _length(dataset, "train_dataset")
    lengths = _measured(dataset, args.length_column_name) if grouped and length else None
    order = EpochOrder(
        length,
        batch_size=args.per_device_train_batch_size,
        seed=_seed(args),
        strategy=args.train_sampling_strategy,
        lengths=lengths,
        world_size=world_size,
        rank=rank,
        drop_last=args.dataloader_drop_last,
        run_window=run_window,
    )
    dataset, collate = _without_unused(dataset, collate, args, columns, training=True)
    return _map_loader(BatchFetcher(dataset, collate, seed=_seed(args), rank=rank), order, args, device)


def build_eval_loader(
    dataset: Any,
    collate: Collate,
    args: TrainingArguments,
    *,
    device: torch.device,
    world_size: int = 1,
    rank: int = 0,
    columns: ModelColumns | None = None,
) -> DataLoader[Any]:
    """Builds the loader of the rows that this rank evaluates: all of them, once, in sequence.

    They are `sampling.eval_rows`; of a dataset without a length, every `world_size`-th row from row `rank` on.

    Raises:
        DataError: the dataset is empty, cannot be indexed, or has no column that the model takes.
    """
    if _is_stream(dataset):
        dealt = {"world_size": world_size, "rank": rank, "training": False}
        return _stream_loader(dataset, collate, args, device, columns, dealt)
    length = _length(dataset, "eval_dataset")
    if length == 0:
        raise DataError("eval_dataset: has no samples, got length 0. Pass a dataset with at least one.")
    order = EvalOrder(eval_rows(length, world_size, rank), args.per_device_eval_batch_size)
    dataset, collate = _without_unused(dataset, collate, args, columns, training=False)
    fetcher = BatchFetcher(dataset, collate, seed=_seed(args), rank=rank, training=False)
    return _map_loader(fetcher, order, args, device)


def _stream_loader(
    dataset: Any,
    collate: Collate,
    args: TrainingArguments,
    device: torch.device,
    columns: ModelColumns | None,
    dealt: Mapping[str, Any],
) -> DataLoader[Any]:
    training = dealt["training"]
    dataset, collate = _without_unused(dataset, collate, args, columns, training=training)
    batches = SampleStream(
        dataset,
        collate,
        batch_size=args.per_device_train_batch_size if training else args.per_device_eval_batch_size,
        seed=_seed(args),
        drop_last=args.dataloader_drop_last and training,
        **dealt,
    )
    workers = min(args.dataloader_num_workers, 1)
    if workers < args.dataloader_num_workers:
        logger.warning(
            "dataloader_num_workers: a dataset without a length is read by 1 worker, got %d. More would change its "
            "order or read it several times over.",
            args.dataloader_num_workers,
        )
    return DataLoader(batches, batch_size=None, collate_fn=as_it_is, **_loader_options(args, device, workers))


def _map_loader(
    fetcher: BatchFetcher, order: EpochOrder | EvalOrder, args: TrainingArguments, device: torch.device
) -> DataLoader[Any]:
    options = _loader_options(args, device, args.dataloader_num_workers)
    return DataLoader(fetcher, batch_sampler=order, collate_fn=as_it_is, **options)


def _loader_options(args: TrainingArguments, device: torch.device, workers: int) -> dict[str, Any]:
    # a generator of its own: without one, every iterator draws its workers' seed from the run's random state
    options: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": args.dataloader_pin_memory and device.type != "cpu",
        "generator": torch.Generator().manual_seed(mix(_seed(args), Purpose.LOADER)),
    }
    if workers:
        options["persistent_workers"] = args.dataloader_persistent_workers
        options["prefetch_factor"] = args.dataloader_prefetch_factor
        options["multiprocessing_context"] = args.dataloader_multiprocessing_context
        options["worker_init_fn"] = partial(leave_signals, args.stop_signals)
    return options


def _without_unused(
    dataset: Any, collate: Collate, args: TrainingArguments, columns: ModelColumns | None, *, training: bool
) -> tuple[Any, Collate]:
    if columns is None or not args.remove_unused_columns:
        return dataset, collate
    return drop_unused_columns(dataset, collate, columns, "training" if training else "evaluation")


def _is_stream(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset) or (
        hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")
    )


def _length(dataset: Any, name: str) -> int:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{name}: needs __getitem__ and __len__, or __iter__, got {type(dataset).__name__}. "
            "Give it these methods, or make it a torch IterableDataset."
        )
    return len(dataset)


def _measured(dataset: Any, length_column: str | None) -> list[int]:
    """Reads the length of every sample; whatever the dataset draws meanwhile, the run's random states stay."""
    lending = Lending(seed_all=True)
    lending.hold()
    try:
        lending.seed(0)
        return sample_lengths(dataset, length_column)
    finally:
        lending.release()


def _seed(args: TrainingArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed
