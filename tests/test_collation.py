from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from trainer_core.data.collation import PaddingCollator, default_data_collator
from trainer_core.errors import DataError

Pair = namedtuple("Pair", "x y")


def same(batch, expected):
    if isinstance(expected, torch.Tensor):
        assert_close(batch, expected, rtol=0, atol=0)
    elif isinstance(expected, dict):
        assert list(batch) == list(expected)
        for key in expected:
            same(batch[key], expected[key])
    elif isinstance(expected, (tuple, list)) and not isinstance(expected[0], str):
        assert type(batch) is type(expected)
        for mine, theirs in zip(batch, expected, strict=True):
            same(mine, theirs)
    else:
        assert batch == expected


f = torch.tensor
CASES = {
    "tensors": ([f([1.0]), f([2.0])], f([[1.0], [2.0]])),
    "numbers": ([1, 2], f([1, 2])),
    "floats": ([1.0, 2], f([1.0, 2.0])),
    "int then float": ([1, 2.5], f([1.0, 2.5])),
    "bools": ([True, False], f([True, False])),
    "numpy numbers": ([np.float64(1), np.float64(2)], f([1.0, 2.0])),
    "numpy ints": ([np.int32(1), np.int32(2)], f([1, 2])),
    "arrays keep their type": ([np.ones(2), np.zeros(2)], f([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)),
    "tuples": ([(f([1.0]), 3), (f([2.0]), 4)], (f([[1.0], [2.0]]), f([3, 4]))),
    "named tuples": ([Pair(1, 2.0), Pair(3, 4.0)], Pair(f([1, 3]), f([2.0, 4.0]))),
    "mappings": (
        [{"a": [1, 2], "label": 0}, {"a": [3, 4], "label": 1}],
        {"a": f([[1, 2], [3, 4]]), "labels": f([0, 1])},
    ),
    "label_ids": ([{"label_ids": [1, 2]}], {"labels": f([[1, 2]])}),
    "label beside labels": ([{"label": 1, "labels": 2}], {"label": f([1]), "labels": f([2])}),
    "none in all": ([{"a": 1, "b": None}, {"a": 2, "b": None}], {"a": f([1, 2])}),
    "text": ([{"t": "x"}, {"t": "y"}], {"t": ["x", "y"]}),
    "nested": ([{"a": {"b": (1, [2.0])}}], {"a": {"b": (f([1]), f([[2.0]]))}}),
    "lists of tensors": ([[f(1), f(2)], [f(3), f(4)]], [f([1, 3]), f([2, 4])]),
}


@pytest.mark.parametrize(("features", "batch"), CASES.values(), ids=CASES)
def test_samples_are_stacked(features, batch):
    same(default_data_collator(features), batch)


UNEVEN = {
    "ragged lists": (
        [{"input_ids": [1, 2]}, {"input_ids": [1]}],
        "batch, 'input_ids': samples of a batch cannot be stacked, got list of 1, list of 2. Pad them with a tokenizer "
        "(processing_class=...), or pass data_collator.",
    ),
    "shapes": (
        [(torch.ones(2), 1), (torch.ones(3), 1)],
        "batch, '[0]': samples of a batch cannot be stacked, got shape (2,), shape (3,). Pad them with a tokenizer "
        "(processing_class=...), or pass data_collator.",
    ),
    "tuples": (
        [(1, 2), (1,)],
        "batch: samples of a batch cannot be stacked, got tuple of 1, tuple of 2. Pad them with a tokenizer "
        "(processing_class=...), or pass data_collator.",
    ),
    "one None": (
        [{"a": 1}, {"a": None}],
        "batch, 'a': samples of a batch cannot be stacked, got NoneType, int. Pad them with a tokenizer "
        "(processing_class=...), or pass data_collator.",
    ),
    "keys": (
        [{"a": 1, "b": 1}, {"b": 1}],
        "batch, 'a': samples of a batch differ in their keys, got none in sample 1 of the batch, whose keys are ['b']. "
        "Give every sample the same keys.",
    ),
    "objects": ([object(), object()], "batch: cannot be stacked, got object. Pass data_collator."),
}


@pytest.mark.parametrize(("features", "message"), UNEVEN.values(), ids=UNEVEN)
def test_samples_that_differ_are_named(features, message):
    with pytest.raises(DataError) as caught:
        default_data_collator(features)
    assert str(caught.value) == message


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_pads_aligned_labels_on_the_tokenizers_side(tokenizer, side):
    tokenizer.padding_side = side
    features = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = PaddingCollator(tokenizer)(features)
    tokenizer.padding_side = "right"
    order = (lambda row: row) if side == "right" else (lambda row: [*row[1:], row[0]])
    assert batch["input_ids"].tolist() == [[1, 2, 3], order([4, 0, 0])]
    assert batch["labels"].tolist() == [[1, 2, 3], order([4, -100, -100])]
    assert features[0].keys() == {"input_ids", "labels"}


def test_padding_pads_labels_of_another_sequence_to_their_own_length(tokenizer):
    batch = PaddingCollator(tokenizer)([{"input_ids": [1], "labels": [1, 2]}, {"input_ids": [1], "labels": [1, 2, 3]}])
    assert batch["labels"].tolist() == [[1, 2, -100], [1, 2, 3]]


def test_padding_stacks_class_labels(tokenizer):
    batch = PaddingCollator(tokenizer)([{"input_ids": [1], "label": 2}, {"input_ids": [1, 5], "label": 0}])
    assert batch["labels"].tolist() == [2, 0]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_padding_needs_mappings(tokenizer):
    with pytest.raises(DataError, match="padding with a tokenizer needs samples that are mappings, got tuple"):
        PaddingCollator(tokenizer)([(1, 2)])
