from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from torch import nn

from trainer_core.data.collation import default_data_collator
from trainer_core.data.columns import ColumnFilter, drop_unused_columns, model_columns, sample_lengths
from trainer_core.errors import DataError


class Model(nn.Module):
    def forward(self, input_ids, labels=None):
        return input_ids


class Anything(nn.Module):
    def forward(self, input_ids, **columns):
        return input_ids


COLUMNS = model_columns(Model().forward, None)
ROWS = [
    {"input_ids": [1, 2], "label": 0, "text": "a", "length": 2},
    {"input_ids": [3, 4], "label": 1, "text": "b", "length": 5},
]


def hf_dataset(**columns):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict(columns or {key: [row[key] for row in ROWS] for key in ROWS[0]})


def test_forwards_parameters_and_labels_are_kept():
    assert COLUMNS.unused(["input_ids", "label", "text", "labels", "label_ids"]) == ["text"]
    assert model_columns(Model().forward, ["target"]).unused(["input_ids", "target", "text"]) == ["text"]


def test_kwargs_take_any_column_but_not_in_transformers():
    assert model_columns(Anything().forward, None).unused(["text"]) == []
    transformers = pytest.importorskip("transformers")
    columns = model_columns(transformers.GPT2ForSequenceClassification.forward, None)
    assert columns.unused(["input_ids", "text", "label"]) == ["text"]


@pytest.mark.parametrize("names", [["text"], ["text", "label"]])
def test_nothing_left_is_an_error_that_names_both_sides(names):
    with pytest.raises(DataError) as caught:
        COLUMNS.unused(names)
    assert str(caught.value) == (
        f"dataset: no column is an input of the model, got columns {names} and forward(input_ids, labels). Rename the "
        "columns to the parameters of forward, or set remove_unused_columns=False."
    )


def test_columns_of_a_datasets_dataset_are_removed(caplog):
    caplog.set_level(logging.INFO, "trainer_core.data")
    dataset, collate = drop_unused_columns(hf_dataset(), default_data_collator, COLUMNS)
    assert dataset.column_names == ["input_ids", "label"]
    assert collate is default_data_collator
    assert caplog.messages == [
        "training data: dropped columns ['text', 'length'], which forward(input_ids, labels) does not take. Keep them "
        "with remove_unused_columns=False."
    ]


def test_keys_of_other_samples_are_dropped_before_collation_and_told_once(caplog):
    caplog.set_level(logging.INFO, "trainer_core.data")
    dataset, collate = drop_unused_columns(ROWS, default_data_collator, replace(COLUMNS))
    assert dataset is ROWS
    assert isinstance(collate, ColumnFilter)
    for _ in range(3):
        batch = collate(ROWS)
    assert {key: value.tolist() for key, value in batch.items()} == {"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]}
    assert len(caplog.messages) == 1


def test_samples_that_are_no_mappings_pass():
    _, collate = drop_unused_columns([], default_data_collator, COLUMNS)
    assert collate([1, 2]).tolist() == [1, 2]


def test_nothing_is_filtered_for_a_model_that_takes_anything():
    columns = model_columns(Anything().forward, None)
    assert drop_unused_columns(ROWS, default_data_collator, columns) == (ROWS, default_data_collator)


@pytest.mark.parametrize("make", [lambda: ROWS, hf_dataset], ids=["list", "datasets"])
@pytest.mark.parametrize(("column", "lengths"), [("length", [2, 5]), ("size", [2, 2]), (None, [2, 2])])
def test_lengths_come_from_the_column_or_from_input_ids(make, column, lengths):
    assert sample_lengths(make(), column) == lengths


@pytest.mark.parametrize("make", [lambda: [{"x": 1}], lambda: [(1, 2)], lambda: hf_dataset(x=[1])])
def test_samples_without_a_length_are_refused(make):
    with pytest.raises(DataError, match=r"group_by_length needs a column 'length' or 'input_ids', got .*'random'"):
        sample_lengths(make(), "length")


def test_a_forward_of_positional_arguments_alone_takes_anything():
    assert model_columns(lambda *inputs: inputs, None).unused(["text"]) == []


def test_all_columns_used_leaves_dataset_and_collator_as_they_are():
    dataset = hf_dataset(input_ids=[[1]], label=[0])
    assert drop_unused_columns(dataset, default_data_collator, COLUMNS) == (dataset, default_data_collator)
    assert ColumnFilter(default_data_collator, COLUMNS)([{"input_ids": [1]}])["input_ids"].tolist() == [[1]]
