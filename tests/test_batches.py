from __future__ import annotations

from collections import UserDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.data.batches import batch_size_of, count_targets, split_batch, to_device
from trainer_core.errors import DataError

LABELS = torch.tensor([[-100, 1, 2], [3, -100, -100]])
X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("batch", "options", "count"),
    [
        ({"x": X, "labels": LABELS}, {}, 3),
        ({"x": X, "labels": LABELS}, {"shifted": True}, 2),
        ({"x": X, "labels": torch.tensor([1, -100])}, {"shifted": True}, 1),
        ({"x": X, "labels": torch.ones(2)}, {}, 2),
        ({"x": X, "target": LABELS}, {"label_names": ("labels", "target")}, 3),
        ({"x": X}, {}, 2),
        ((X, LABELS), {}, 3),
        ([X, torch.ones(2)], {}, 2),
        (X, {}, 2),
    ],
)
def test_targets_are_labels_that_count_else_samples(batch, options, count):
    assert count_targets(batch, **options) == count


def test_a_batch_without_tensors_is_refused():
    with pytest.raises(DataError, match="batch: holds no tensor with a batch dimension, got dict"):
        batch_size_of({"text": ["a"], "scale": torch.tensor(1.0)})


@given(st.integers(1, 20), st.integers(1, 25))
def test_split_parts_join_to_the_batch(size, parts):
    scale = torch.tensor(2.0)
    batch = {
        "x": torch.arange(size),
        "pair": (torch.arange(size) * 2, [str(row) for row in range(size)]),
        "scale": scale,
    }
    pieces = split_batch(batch, parts)
    sizes = [batch_size_of(piece) for piece in pieces]
    assert len(pieces) == min(size, parts)
    assert max(sizes) - min(sizes) <= 1
    assert torch.cat([piece["x"] for piece in pieces]).tolist() == list(range(size))
    assert [text for piece in pieces for text in piece["pair"][1]] == [str(row) for row in range(size)]
    assert all(piece["scale"] is scale for piece in pieces)


@pytest.mark.parametrize("batch", [X, {"x": X, "n": 1}, (X, [X]), UserDict(x=X), "text"])
def test_nothing_to_move_gives_the_same_object(batch):
    assert to_device(batch, torch.device("cpu")) is batch


def test_every_tensor_moves_and_the_structure_stays():
    meta = torch.device("meta")
    moved = to_device({"x": X, "pair": (X, [X, "text"]), "user": UserDict(x=X)}, meta)
    assert (
        moved["x"].device == moved["pair"][0].device == moved["pair"][1][0].device == moved["user"]["x"].device == meta
    )
    assert (type(moved["pair"]), moved["pair"][1][1], type(moved["user"])) == (tuple, "text", UserDict)
