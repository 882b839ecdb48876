"""Digests tell any two contents apart, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from trainer_core_replay.digest import (
    digest_of_tensor,
    digest_of_tensors,
    digest_of_value,
    exact,
    tensors_of,
)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}:UserWarning")  # torch says so of such tensors, once a process
    for text in ("Sparse CSR", "Sparse CSC", "Sparse invariant", "torch.quantize_per_tensor")
]
BASE = torch.arange(6, dtype=torch.float32).reshape(2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_the_type_counts(dtype):
    assert digest_of_tensor(BASE.to(dtype)) != digest_of_tensor(BASE)
    assert digest_of_tensor(BASE.to(dtype)) == digest_of_tensor(BASE.clone().to(dtype))


def test_the_shape_counts_and_the_strides_do_not():
    assert digest_of_tensor(BASE.reshape(3, 2)) != digest_of_tensor(BASE)
    assert digest_of_tensor(BASE.t().contiguous().t()) == digest_of_tensor(BASE)
    assert digest_of_tensor(torch.stack([BASE, BASE + 1])[0]) == digest_of_tensor(BASE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_bit_of_one_element_counts(dtype):
    changed = BASE.to(dtype).clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(math.inf, dtype=dtype))
    assert digest_of_tensor(changed) != digest_of_tensor(BASE.to(dtype))


def test_zeros_of_two_signs_differ_and_a_nan_equals_itself():
    assert digest_of_tensor(torch.tensor([0.0])) != digest_of_tensor(torch.tensor([-0.0]))
    assert digest_of_tensor(torch.tensor([math.nan])) == digest_of_tensor(torch.tensor([math.nan]))


@pytest.mark.parametrize(
    "value", [torch.tensor(1.5), torch.empty(0, 3), torch.tensor(1 + 2j), torch.tensor([1j]).conj()]
)
def test_a_tensor_without_dimensions_an_empty_and_a_complex_one_have_digests(value):
    assert digest_of_tensor(value) == digest_of_tensor(value.clone())
    assert len(digest_of_tensor(value)) == 32


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_a_sparse_tensor_counts_by_places_and_values(layout):
    sparse, moved, scaled = (one.to_sparse(layout=layout) for one in (BASE, BASE.flip(0), BASE * 2))
    assert digest_of_tensor(sparse) == digest_of_tensor(BASE.clone().to_sparse(layout=layout))
    assert len({digest_of_tensor(one) for one in (sparse, moved, scaled, BASE)}) == 4


def test_a_sparse_tensor_that_is_not_coalesced_counts_as_if_it_were():
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.tensor([1.0, 2.0]), (2,))
    assert digest_of_tensor(twice) == digest_of_tensor(torch.tensor([3.0, 0.0]).to_sparse())


def test_a_quantized_tensor_has_a_digest():
    quantized = [torch.quantize_per_tensor(BASE * scale, 0.1, 0, torch.qint8) for scale in (1, 1, 2)]
    assert digest_of_tensor(quantized[0]) == digest_of_tensor(quantized[1]) != digest_of_tensor(quantized[2])


def test_the_short_digests_are_the_beginnings_of_those_of_each_tensor():
    whole, each = digest_of_tensors([("a", BASE), ("b", BASE + 1)])
    assert each == digest_of_tensor(BASE).hex()[:8] + digest_of_tensor(BASE + 1).hex()[:8]
    assert whole == digest_of_tensors([("a", BASE), ("b", BASE + 1)])[0]
    assert len({whole, digest_of_tensors([("b", BASE + 1), ("a", BASE)])[0], digest_of_tensors([("a", BASE)])[0]}) == 3


def test_tied_parameters_are_there_once_and_buffers_are_there():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    assert [name for name, _ in tensors_of(model)] == [
        *("0.weight", "0.bias", "1.bias", "2.weight", "2.bias"),
        *("2.running_mean", "2.running_var", "2.num_batches_tracked"),
    ]


def test_a_batch_counts_by_what_is_in_it_and_where():
    batches = [
        {"a": BASE, "b": [1, 2]}, {"a": BASE, "b": [1, 3]}, {"b": BASE, "a": [1, 2]}, {"a": BASE, "b": [[1], 2]},
        [BASE, BASE], [[BASE], BASE], (BASE,), "text", "texts", None, 1, 1.0, b"1", {"a": object()}, {"a": 2 + 3j},
    ]  # fmt: skip
    assert len({digest_of_value(batch) for batch in batches}) == len(batches)
    assert digest_of_value({"a": BASE.clone(), "b": [1, 2]}) == digest_of_value(batches[0])
    assert digest_of_value({"a": object()}) == digest_of_value({"a": object()})


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.tensor(0.1), 0.10000000149011612), (0.1, 0.1), (None, None), (torch.tensor(math.nan), "nan"),
        (math.inf, "inf"), (-math.inf, "-inf"), (torch.tensor(3), 3.0),
    ],
)  # fmt: skip
def test_a_number_is_told_to_its_last_bit(value, told):
    assert repr(exact(value)) == repr(told)
