"""The columns of a dataset: which of them a model takes, and how long its samples are."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from torch.utils.data import get_worker_info

from trainer_core.data.collation import Collate
from trainer_core.errors import DataError

logger = logging.getLogger("trainer_core.data")

_LABELS: Final = ("label", "label_ids", "labels")  # what collators make `labels` of


@runtime_checkable
class ColumnarDataset(Protocol):
    """What is used of `datasets.Dataset` and `datasets.IterableDataset`."""

    @property
    def column_names(self) -> list[str] | None:
        """Names of the columns; None where a streamed dataset does not know them."""

    def remove_columns(self, column_names: list[str]) -> Any:
        """Gives the dataset without these columns."""


@dataclass(frozen=True)
class ModelColumns:
    """What a model's `forward` takes.

    Attributes:
        parameters: names of the parameters of `forward`.
        labels: columns that are labels and are kept whatever `forward` takes.
        anything: whether `forward` takes any column by `**kwargs`.
    """

    parameters: tuple[str, ...]
    labels: tuple[str, ...]
    anything: bool
    _told: set[tuple[str, ...]] = field(default_factory=set, init=False, compare=False, repr=False)

    def unused(self, names: Iterable[str]) -> list[str]:
        """Gives the columns that the model does not take.

        Raises:
            DataError: it takes none of them.
        """
        names = list(names)
        if self.anything:
            return []
        unused = [name for name in names if name not in self.parameters and name not in self.labels]
        if len(unused) == len(names) or not self._has_input(names):
            raise DataError(
                f"dataset: no column is an input of the model, got columns {names} and "
                f"forward({', '.join(self.parameters)}). Rename the columns to the parameters of forward, or set "
                "remove_unused_columns=False."
            )
        return unused

    def _has_input(self, names: Collection[str]) -> bool:
        inputs = [name for name in self.parameters if name not in self.labels]
        return not inputs or any(name in names for name in inputs)


def model_columns(forward: Callable[..., Any], label_names: Sequence[str] | None) -> ModelColumns:
    """Gives the columns that `forward` takes.

    `**kwargs` means any column, but not in a model of transformers: there they are options of its layers.
    """
    parameters = inspect.signature(forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    of_transformers = getattr(forward, "__module__", "").startswith("transformers.")
    labels = tuple(dict.fromkeys((*_LABELS, *(label_names or ()))))
    return ModelColumns(tuple(named), labels, not named or (open_ended and not of_transformers))


def drop_unused_columns(
    dataset: Any, collate: Collate, columns: ModelColumns, purpose: str = "training"
) -> tuple[Any, Collate]:
    """Gives the dataset and the collator without the columns that the model does not take.

    The columns of a `datasets.Dataset` are removed from it, those of other samples that are mappings just before
    they are collated; samples of other kinds pass as they are.

    Raises:
        DataError: nothing is left.
    """
    if columns.anything:
        return dataset, collate
    names = dataset.column_names if isinstance(dataset, ColumnarDataset) else None
    if names is None:
        return dataset, ColumnFilter(collate, columns, purpose)
    unused = columns.unused(names)
    if not unused:
        return dataset, collate
    _tell(unused, columns, purpose)
    return dataset.remove_columns(unused), collate


class ColumnFilter:
    """Drops what the model does not take from samples that are mappings, then collates."""

    def __init__(self, collate: Collate, columns: ModelColumns, purpose: str = "training") -> None:
        self.collate = collate
        self._columns = columns
        self._purpose = purpose
        self._known: dict[tuple[Any, ...], tuple[Any, ...] | None] = {}  # keys of a sample -> keys to keep

    def __call__(self, features: list[Any]) -> Any:
        """Collates the columns that are left."""
        if not isinstance(features[0], Mapping):
            return self.collate(features)
        keys = tuple(features[0])
        if keys not in self._known:
            self._known[keys] = self._kept(keys)
        kept = self._known[keys]
        if kept is None:
            return self.collate(features)
        return self.collate([{key: sample[key] for key in kept if key in sample} for sample in features])

    def _kept(self, keys: tuple[Any, ...]) -> tuple[Any, ...] | None:
        unused = self._columns.unused(keys)
        if not unused:
            return None
        worker = get_worker_info()
        if not self._known and (worker is None or worker.id == 0):
            _tell(unused, self._columns, self._purpose)
        return tuple(key for key in keys if key not in unused)


def sample_lengths(dataset: Any, length_column: str | None) -> list[int]:
    """Gives the length of every sample: the column `length_column`, else the number of `input_ids`.

    A `datasets.Dataset` is asked for one column; of other datasets every sample is read once.

    Raises:
        DataError: the samples have neither.
    """
    if isinstance(dataset, ColumnarDataset) and hasattr(dataset, "__getitem__"):
        names = dataset.column_names or []
        if length_column in names:
            return [int(length) for length in dataset[length_column]]
        if "input_ids" in names:
            return [len(row) for row in dataset.select_columns("input_ids")["input_ids"]]  # type: ignore[attr-defined]  # of datasets.Dataset
        raise _lengthless(f"columns {names}", length_column)
    return [_length_of(dataset[index], length_column) for index in range(len(dataset))]


def _length_of(sample: Any, length_column: str | None) -> int:
    if not isinstance(sample, Mapping):
        raise _lengthless(f"a sample that is a {type(sample).__name__}", length_column)
    if length_column in sample:
        return int(sample[length_column])
    if "input_ids" in sample:
        return len(sample["input_ids"])
    raise _lengthless(f"a sample with {sorted(map(str, sample))}", length_column)


def _lengthless(got: str, length_column: str | None) -> DataError:
    return DataError(
        f"train_sampling_strategy: group_by_length needs a column {length_column!r} or 'input_ids', got {got}. "
        "Add one, name yours with length_column_name, or use 'random'."
    )


def _tell(unused: list[str], columns: ModelColumns, purpose: str) -> None:
    if (purpose, *unused) in columns._told:
        return
    columns._told.add((purpose, *unused))
    logger.info(
        "%s data: dropped columns %s, which forward(%s) does not take. Keep them with remove_unused_columns=False.",
        purpose,
        unused,
        ", ".join(columns.parameters),
    )
