"""Outputs of many batches, each written once into a growing buffer.

Nothing is concatenated again when a batch arrives, so that collecting n batches costs O(n) and, where the number of
rows is known, no more memory than the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, zip_longest
from typing import Any, Final

import numpy as np
import torch

from trainer_core.errors import DataError

PADDING: Final = -100
"""Fills rows of ragged outputs up to the longest, as the guide's metric functions expect."""


class Rows:
    """One output over all rows, in a buffer that is allocated once where the number of rows is known.

    Args:
        capacity: the number of rows, or None.
    """

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.filled = 0
        self.buffer: torch.Tensor | None = None

    def add(self, rows: torch.Tensor) -> None:
        """Appends `rows` (batch, ...); ragged trailing dimensions are padded with -100."""
        rows = rows.detach()
        if rows.dtype is torch.bfloat16:
            rows = rows.float()
        end = self.filled + len(rows)
        if self.buffer is None:
            self.buffer = torch.empty((max(self.capacity or 0, len(rows)), *rows.shape[1:]), dtype=rows.dtype)
        if end > len(self.buffer) or self.buffer.shape[1:] != rows.shape[1:] or self.buffer.dtype is not rows.dtype:
            self._grow(end, rows)
        if self.buffer.shape[1:] == rows.shape[1:]:
            self.buffer[self.filled : end].copy_(rows)
        else:
            self.buffer[self.filled : end].fill_(PADDING)
            self.buffer[(slice(self.filled, end), *map(slice, rows.shape[1:]))].copy_(rows)
        self.filled = end

    def array(self) -> np.ndarray[Any, Any]:
        """Gives the rows added so far."""
        assert self.buffer is not None
        array: np.ndarray[Any, Any] = self.buffer[: self.filled].numpy()
        return array

    def _grow(self, end: int, rows: torch.Tensor) -> None:
        assert self.buffer is not None
        old = self.buffer
        if old.ndim != rows.ndim:
            raise DataError(
                f"evaluation: outputs of shape {tuple(rows.shape)} follow outputs of {old.ndim} dimensions. "
                f"Give every batch the same number of dimensions, or reduce them in preprocess_logits_for_metrics."
            )
        trailing = [max(a, b) for a, b in zip(old.shape[1:], rows.shape[1:], strict=True)]
        capacity = len(old) if end <= len(old) else max(end, 2 * len(old))
        self.buffer = torch.full((capacity, *trailing), PADDING, dtype=torch.promote_types(old.dtype, rows.dtype))
        self.buffer[(slice(0, self.filled), *map(slice, old.shape[1:]))].copy_(old[: self.filled])


class Column:
    """Python objects, one a row: texts, or whatever no tensor holds."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def add(self, objects: list[Any]) -> None:
        """Appends the objects of a batch."""
        self.objects += objects

    def array(self) -> np.ndarray[Any, Any]:
        """Gives the objects added so far, as an array of objects."""
        return as_column(self.objects)


class Collector:
    """Collects nested outputs (tensors in tuples, lists and mappings): a `Rows` for a tensor, a `Column` for texts.

    A list that holds no tensor, however deep, is a column: it has an object for each row of the batch. What is None is
    left out. Every batch must have the structure of the first.

    Args:
        capacity: the number of rows, or None.
        flush_every: batches that are kept on the device before they are moved to the host; 1 on a CPU.
    """

    def __init__(self, capacity: int | None, flush_every: int | None) -> None:
        self.capacity = capacity
        self.flush_every = flush_every
        self.tree: Any = None
        self.batches = 0
        self.waiting: list[Any] = []

    def add(self, outputs: Any) -> None:
        """Appends the outputs of a batch."""
        if outputs is None:
            return
        self.batches += 1
        self.waiting.append(outputs)
        if self.flush_every is not None and len(self.waiting) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Moves what waits on the device into the buffers."""
        for outputs in self.waiting:
            self.tree = self._add(self.tree, outputs)
        self.waiting.clear()

    def arrays(self) -> Any:
        """Gives the collected arrays in the structure of the outputs, or None."""
        self.flush()
        return map_tree(lambda rows: rows.array(), self.tree)

    def _add(self, tree: Any, outputs: Any) -> Any:
        if isinstance(outputs, torch.Tensor):
            tree = Rows(self.capacity) if tree is None else _like(tree, Rows, outputs)
            tree.add(outputs if outputs.ndim else outputs[None])
        elif isinstance(outputs, Mapping):
            news = {key: value for key, value in outputs.items() if value is not None}
            olds = dict.fromkeys(news) if tree is None else _like(tree, dict, outputs)
            if olds.keys() != news.keys():
                raise _unlike(f"named {', '.join(map(str, news))}", f"those named {', '.join(map(str, olds))}")
            return {key: self._add(olds[key], value) for key, value in news.items()}
        elif is_column(outputs):
            tree = Column() if tree is None else _like(tree, Column, outputs)
            tree.add(outputs)
        elif isinstance(outputs, tuple | list):
            parts = [value for value in outputs if value is not None]
            olds = (None,) * len(parts) if tree is None else _like(tree, tuple, outputs)
            if len(olds) != len(parts):
                raise _unlike(f"of {len(parts)} parts", f"those of {len(olds)}")
            return tuple(self._add(old, part) for old, part in zip(olds, parts, strict=True))
        else:
            raise _uncollectable(outputs)
        return tree


class BatchCollector(Collector):
    """Collects nested outputs as a list, one tree of arrays a batch, each in its own structure and shape."""

    def arrays(self) -> Any:
        """Gives the list of batches, or None."""
        self.flush()
        return self.tree

    def _add(self, tree: Any, outputs: Any) -> Any:
        tree = tree if tree is not None else []
        tree.append(map_tree(as_array, settled(outputs)))
        return tree


def is_column(value: Any) -> bool:
    """Tells whether `value` is a list of objects, one a row: it is not empty and holds no tensor."""
    return isinstance(value, list) and any(item is not None for item in value) and not _holds_tensor(value)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    return any(map(_holds_tensor, value)) if isinstance(value, tuple | list) else isinstance(value, torch.Tensor)


def as_column(objects: list[Any]) -> np.ndarray[Any, Any]:
    """Gives objects as an array of one dimension, whatever they are."""
    array: np.ndarray[Any, Any] = np.empty(len(objects), dtype=object)
    array[:] = objects
    return array


def settled(outputs: Any) -> Any:
    """Gives the outputs of a batch as tensors without a graph and arrays of objects, without what is None.

    Raises:
        DataError: an output is of a type that cannot be collected.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs.detach()
    if isinstance(outputs, Mapping):
        return {key: settled(value) for key, value in outputs.items() if value is not None}
    if is_column(outputs):
        return as_column(outputs)
    if isinstance(outputs, tuple | list):
        return tuple(settled(value) for value in outputs if value is not None)
    raise _uncollectable(outputs)


def as_array(value: torch.Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Gives a tensor as an array on the host; numpy has no bfloat16, which becomes float32."""
    if isinstance(value, np.ndarray):
        return value
    tensor = value.detach().cpu()
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def _like(tree: Any, kind: type, outputs: Any) -> Any:
    """Gives `tree`, what was collected before, which must be of `kind`."""
    if not isinstance(tree, kind):
        raise _unlike(f"of type {type(outputs).__name__}", "those of another type")
    return tree


def _unlike(new: str, before: str) -> DataError:
    return DataError(
        f"evaluation: outputs {new} follow {before}. Give every batch the same structure, name what comes and goes in "
        f"ignore_keys, or set eval_do_concat_batches=False."
    )


def _uncollectable(output: Any) -> DataError:
    return DataError(
        f"evaluation: cannot collect an output of type {type(output).__name__}. "
        f"Return tensors, or tuples, lists and mappings of tensors, or name it in ignore_keys."
    )


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    """Gives `tree` (tuples, lists, mappings) with `function` applied to its leaves; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: map_tree(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(map_tree(function, value) for value in tree)
    return function(tree)


def chained(shares: list[Any], *, by_turns: bool) -> list[Any] | None:
    """Gives the lists of batches of all ranks as one: rank after rank, or by turns, one of each rank."""
    lists = [share for share in shares if share is not None]
    batches = chain(*zip_longest(*lists)) if by_turns else chain(*lists)
    return [batch for batch in batches if batch is not None] or None


def concatenated(shares: list[Any]) -> Any:
    """Gives the arrays of all ranks, trees of one structure, as one tree; ragged trailing dimensions are padded."""
    shares = [share for share in shares if share is not None]
    if len(shares) <= 1:
        return shares[0] if shares else None
    first = shares[0]
    if isinstance(first, Mapping):
        return {key: concatenated([share[key] for share in shares]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(concatenated(list(column)) for column in zip(*shares, strict=True))
    if first.dtype == object:
        return np.concatenate(shares)
    rows = Rows(sum(len(share) for share in shares))
    for share in shares:
        rows.add(torch.from_numpy(share))
    return rows.array()
