"""Batches: counting, splitting and moving whatever a collator made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer_core.data.collation import IGNORE_INDEX
from trainer_core.errors import DataError


def batch_size_of(batch: Any) -> int:
    """Gives the samples of a batch: the first dimension of its first tensor that has one.

    Raises:
        DataError: the batch has no such tensor.
    """
    size = _size_of(batch)
    if size is None:
        raise DataError(
            f"batch: holds no tensor with a batch dimension, got {type(batch).__name__}. "
            "Let data_collator return tensors whose first dimension is the batch."
        )
    return size


def count_targets(batch: Any, label_names: Sequence[str] = ("labels",), *, shifted: bool = False) -> int | Tensor:
    """Gives the targets of a batch: elements of its integer labels that are not -100, else its samples.

    Labels are the first of `label_names` that the batch has, or the last element of a tuple when it is integer.

    Args:
        batch: A mapping, or a tuple `(inputs, labels)`.
        label_names: names under which a mapping may hold labels.
        shifted: leave out the first position, which a causal language model has no prediction for.

    Returns:
        A number for labels on the CPU; a 0-dim tensor on an accelerator, which is not waited for.
    """
    labels = _labels_of(batch, label_names)
    if labels is None:
        return batch_size_of(batch)
    if shifted and labels.dim() > 1:
        labels = labels[:, 1:]
    targets = labels.ne(IGNORE_INDEX).sum()
    return int(targets) if labels.device.type == "cpu" else targets


def split_batch(batch: Any, parts: int) -> list[Any]:
    """Splits a batch into up to `parts` of nearly equal size along the first dimension.

    What has the batch's size in its first dimension (tensors, and lists of text) is split, the rest is in every
    part as it is.
    """
    size = batch_size_of(batch)
    each, more = divmod(size, min(parts, size) or 1)
    stops = [(part + 1) * each + min(part + 1, more) for part in range(min(parts, size))]
    return [_cut(batch, size, start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def to_device(batch: Any, device: torch.device, *, non_blocking: bool = False) -> Any:
    """Gives the batch with every tensor on `device`; the same object when nothing moves."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=non_blocking)
    kind = type(batch)
    if kind is dict or isinstance(batch, Mapping):
        for value in batch.values():
            if to_device(value, device, non_blocking=non_blocking) is not value:
                return _rebuilt(batch, lambda inner: to_device(inner, device, non_blocking=non_blocking))
        return batch
    if kind is tuple or kind is list or isinstance(batch, tuple):
        moved = [to_device(value, device, non_blocking=non_blocking) for value in batch]
        if all(new is old for new, old in zip(moved, batch, strict=True)):
            return batch
        return _sequence(batch, moved)
    return batch


def _labels_of(batch: Any, label_names: Sequence[str]) -> Tensor | None:
    labels: Any = None
    if isinstance(batch, Mapping):
        labels = next((batch[name] for name in label_names if name in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        labels = batch[-1]
    if not isinstance(labels, Tensor) or labels.dim() == 0:
        return None
    whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    return labels if whole else None


def _size_of(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (tuple, list)):
        return None
    return next((size for value in batch if (size := _size_of(value)) is not None), None)


def _cut(value: Any, size: int, start: int, stop: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:stop] if value.dim() and len(value) == size else value
    if isinstance(value, list) and len(value) == size and not any(isinstance(item, Tensor) for item in value):
        return value[start:stop]
    if isinstance(value, (Mapping, list, tuple)):
        return _rebuilt(value, lambda inner: _cut(inner, size, start, stop))
    return value


def _rebuilt(batch: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(batch, Mapping):
        return _sequence(batch, [change(value) for value in batch])
    changed = {key: change(value) for key, value in batch.items()}
    if type(batch) is dict:
        return changed
    try:
        return type(batch)(changed)  # type: ignore[call-arg]  # BatchEncoding, UserDict and their like take a mapping
    except TypeError:
        return changed


def _sequence(batch: Any, values: list[Any]) -> Any:
    kind = type(batch)
    return kind(*values) if hasattr(kind, "_fields") else kind(values)
