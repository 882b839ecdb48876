"""From samples to a batch: stacking, and padding with a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from trainer_core.errors import DataError

Collate = Callable[[list[Any]], Any]
"""Takes the samples of a micro-batch and gives the batch."""

IGNORE_INDEX: Final = -100
"""Target that losses leave out; what labels are padded with."""

_LABEL_SPELLINGS: Final = ("label", "label_ids")


@runtime_checkable
class Padder(Protocol):
    """What is needed of a tokenizer: its `pad`."""

    def pad(self, encoded_inputs: Any, *, padding: Any = ..., return_tensors: str | None = ...) -> Any:
        """Pads the samples of a batch to one length and gives a mapping of tensors."""


def default_data_collator(features: list[Any]) -> Any:
    """Stacks samples into a batch of the same structure.

    Tensors, arrays and lists of numbers are stacked in their own type; Python's and numpy's single numbers become
    int64, float32 or bool; text stays a list. Samples may be mappings, tuples, tensors or numbers, nested. A key
    `label` or `label_ids` becomes `labels`; a key that is None in every sample is left out.

    Raises:
        DataError: samples of a batch differ in shape, type or keys; names the key.
    """
    return _stacked(features, "")


class PaddingCollator:
    """Pads the samples of a batch to the longest with `tokenizer.pad`; labels that are sequences with -100.

    Labels as long as their sample's `input_ids` are padded to the same width and on the tokenizer's side, others
    (of another sequence) to their own longest, at the end.
    """

    def __init__(self, tokenizer: Padder) -> None:
        self.tokenizer = tokenizer
        # transformers' fast tokenizers advise against `pad`, once for each process and on every rank
        getattr(tokenizer, "deprecation_warnings", {})["Asking-to-pad-a-fast-tokenizer"] = True

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """Gives tensors of `(batch, longest sequence)`."""
        if not isinstance(features[0], Mapping):
            raise DataError(
                f"data_collator: padding with a tokenizer needs samples that are mappings, got "
                f"{type(features[0]).__name__}. Pass data_collator=default_data_collator or one of your own."
            )
        samples = [_with_labels(feature) for feature in features]
        ragged = "labels" in samples[0] and np.ndim(samples[0]["labels"]) == 1
        labels = [torch.as_tensor(sample.pop("labels")) for sample in samples] if ragged else None
        aligned = labels is not None and all(
            len(sample.get("input_ids", ())) == len(row) for sample, row in zip(samples, labels, strict=True)
        )
        batch = dict(self.tokenizer.pad(samples, padding=True, return_tensors="pt"))
        if labels is not None:
            batch["labels"] = self._padded(labels, int(batch["input_ids"].shape[1]) if aligned else None)
        return batch

    def _padded(self, labels: list[Tensor], width: int | None) -> Tensor:
        left = width is not None and getattr(self.tokenizer, "padding_side", "right") == "left"
        longest = max(map(len, labels)) if width is None else width
        padded = labels[0].new_full((len(labels), longest), IGNORE_INDEX)
        for row, label in zip(padded, labels, strict=True):
            row[longest - len(label) :].copy_(label) if left else row[: len(label)].copy_(label)
        return padded


def is_own_collator(collate: object) -> bool:
    """Tells whether `collate` is one of this module, which draw no random numbers."""
    return collate is default_data_collator or type(collate) is PaddingCollator


def _stacked(values: Sequence[Any], where: str) -> Any:
    first = values[0]
    try:
        if isinstance(first, Tensor):
            return torch.stack(values)  # type: ignore[arg-type]  # torch takes any sequence
        if isinstance(first, (bool, int, float, np.generic)):
            return _numbers(values)
        if isinstance(first, np.ndarray):
            return torch.from_numpy(np.stack(values))
        if isinstance(first, Mapping):
            return _mapping(values, where)
        if isinstance(first, tuple):
            return _tuple(values, where)
        if isinstance(first, list):
            return _lists(values, where)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(_uneven(values, where)) from error
    if isinstance(first, (str, bytes)):
        return list(values)
    raise DataError(f"{_named(where)}: cannot be stacked, got {type(first).__name__}. Pass data_collator.")


def _numbers(values: Sequence[Any]) -> Tensor:
    first = values[0]
    if isinstance(first, (bool, np.bool_)):
        return torch.tensor(values, dtype=torch.bool)
    if isinstance(first, (int, np.integer)) and not any(isinstance(value, (float, np.floating)) for value in values):
        return torch.tensor(values, dtype=torch.int64)
    return torch.tensor(values, dtype=torch.complex64 if np.iscomplexobj(first) else torch.float32)


def _mapping(values: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    names = _label_names(values[0])
    batch = {}
    for key in values[0]:
        inner = f"{where}.{key}" if where else str(key)
        try:
            column = [value[key] for value in values]
        except KeyError:
            missing = next(place for place, value in enumerate(values) if key not in value)
            raise DataError(
                f"{_named(inner)}: samples of a batch differ in their keys, got none in sample {missing} of the "
                f"batch, whose keys are {sorted(map(str, values[missing]))}. Give every sample the same keys."
            ) from None
        if column[0] is None and all(value is None for value in column):
            continue
        batch[names.get(key, key)] = _stacked(column, inner)
    return batch


def _tuple(values: Sequence[Any], where: str) -> Any:
    columns = [_stacked(column, f"{where}[{place}]") for place, column in enumerate(zip(*values, strict=True))]
    kind = type(values[0])
    return kind(*columns) if hasattr(kind, "_fields") else tuple(columns)


def _lists(values: Sequence[list[Any]], where: str) -> Any:
    """Stacks lists of numbers as rows, and other lists as structure, like tuples."""
    leaf: Any = values[0]
    while isinstance(leaf, list) and leaf:
        leaf = leaf[0]
    if isinstance(leaf, (Tensor, np.ndarray, Mapping, tuple, str, bytes)):
        return list(_tuple([tuple(value) for value in values], where))
    return torch.tensor(values)


def _label_names(sample: Mapping[str, Any]) -> dict[str, str]:
    if "labels" in sample:
        return {}
    return {name: "labels" for name in _LABEL_SPELLINGS if name in sample}


def _with_labels(sample: Mapping[str, Any]) -> dict[str, Any]:
    names = _label_names(sample)
    return {names.get(key, key): value for key, value in sample.items()}


def _uneven(values: Sequence[Any], where: str) -> str:
    shapes = sorted({_shape(value) for value in values})
    return (
        f"{_named(where)}: samples of a batch cannot be stacked, got {', '.join(shapes[:4])}"
        f"{', ...' if len(shapes) > 4 else ''}. Pad them with a tokenizer (processing_class=...), or pass "
        "data_collator."
    )


def _shape(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _named(where: str) -> str:
    return f"batch, {where!r}" if where else "batch"
