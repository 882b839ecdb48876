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


class Collector:
    """Collects nested outputs (tensors in tuples, lists and mappings), one `Rows` a tensor.

    Args:
        capacity: the number of rows, or None.
        flush_every: batches that are kept on the device before they are moved to the host; 1 on a CPU.
    """

    def __init__(self, capacity: int | None, flush_every: int | None) -> None:
        self.capacity = capacity
        self.flush_every = flush_every
        self.tree: Any = None
        self.waiting: list[Any] = []

    def add(self, outputs: Any) -> None:
        """Appends the outputs of a batch."""
        if outputs is None:
            return
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
        return map_tree(Rows.array, self.tree)

    def _add(self, tree: Any, outputs: Any) -> Any:
        if isinstance(outputs, torch.Tensor):
            tree = tree if tree is not None else Rows(self.capacity)
            tree.add(outputs if outputs.ndim else outputs[None])
            return tree
        if isinstance(outputs, Mapping):
            tree = tree if tree is not None else {}
            return {key: self._add(tree.get(key), value) for key, value in outputs.items() if value is not None}
        if isinstance(outputs, tuple | list):
            news = [value for value in outputs if value is not None]
            olds = tree if tree is not None else [None] * len(news)
            return tuple(self._add(old, new) for old, new in zip(olds, news, strict=True))
        raise _uncollectable(outputs)


class BatchCollector(Collector):
    """Collects nested outputs as a list, one tree of arrays a batch, each in its own shape."""

    def arrays(self) -> Any:
        """Gives the list of batches, or None."""
        self.flush()
        return self.tree

    def _add(self, tree: Any, outputs: Any) -> Any:
        tree = tree if tree is not None else []
        tree.append(_present(outputs))
        return tree


def as_array(tensor: Any) -> np.ndarray[Any, Any]:
    """Gives a tensor as an array on the host; numpy has no bfloat16, which becomes float32."""
    if not isinstance(tensor, torch.Tensor):
        raise _uncollectable(tensor)
    tensor = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def _present(tree: Any) -> Any:
    """Gives `tree` as arrays, without the leaves that are None."""
    if isinstance(tree, Mapping):
        return {key: _present(value) for key, value in tree.items() if value is not None}
    if isinstance(tree, tuple | list):
        return tuple(_present(value) for value in tree if value is not None)
    return as_array(tree)


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
    rows = Rows(sum(len(share) for share in shares))
    for share in shares:
        rows.add(torch.from_numpy(share))
    return rows.array()
