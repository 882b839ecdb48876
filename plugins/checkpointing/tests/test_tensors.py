"""Tensors come back from safetensors files as the library writes them, and from no other file."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from trainer_core import InvalidCheckpointError
from trainer_core_checkpointing.tensors import DTYPES, read_shapes, read_tensors

SHAPES = st.lists(st.integers(0, 4), max_size=4)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@given(
    wanted=st.dictionaries(
        st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=6
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_library_writes_comes_back(tmp_path, wanted, seal_of):
    wanted.pop("__metadata__", None)
    tensors = {}
    for name, (code, shape) in wanted.items():
        numbers = torch.randint(0, 2, shape, dtype=torch.uint8)
        tensors[name] = numbers.to(DTYPES[code])
    save_file(tensors, tmp_path / "file", metadata={"format": "pt"})
    seal = seal_of((tmp_path / "file").read_bytes())
    found, shapes = read_tensors(tmp_path / "file", seal), read_shapes(tmp_path / "file", seal)
    assert found.keys() == tensors.keys() == shapes.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape, bits(found[name])) == (tensor.dtype, tensor.shape, bits(tensor))
        assert (shapes[name].dtype, shapes[name].shape) == (tensor.dtype, tuple(tensor.shape))


def test_each_tensor_has_memory_of_its_own(tmp_path):
    save_file({"a": torch.zeros(3), "b": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "file")
    for tensor in read_tensors(tmp_path / "file").values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        tensor.add_(1)


@given(place=st.integers(0, 199), value=st.integers(0, 255))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_found_by_the_seal_and_ends_in_our_error_without_one(
    tmp_path, place, value, refusal, seal_of
):
    save_file({"a": torch.arange(4.0), "bb": torch.arange(3)}, tmp_path / "file")
    content = bytearray((tmp_path / "file").read_bytes())
    seal, place = seal_of(bytes(content)), place % len(content)
    changed, content[place] = content[place] != value, value
    (tmp_path / "file").write_bytes(content)
    if changed:
        assert refusal(read_tensors, tmp_path / "file", seal).endswith(
            "its checksum does not fit. Use another checkpoint."
        )
    try:
        found = read_tensors(tmp_path / "file")
    except InvalidCheckpointError:
        return
    theirs = load(bytes(content))  # what is read without a seal the library reads as well, and in the same way
    assert {name: bits(tensor) for name, tensor in found.items()} == {name: bits(theirs[name]) for name in theirs}


def packed(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        packed({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
        packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 8),
        packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8),
        packed({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        packed({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        packed({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 0]}}),
        packed([]),
        b"",
        b"\xff" * 32,
    ],
)
def test_what_the_library_refuses_is_refused_here(content, tmp_path, refusal):
    with pytest.raises(SafetensorError):
        load(content)
    (tmp_path / "file").write_bytes(content)
    for read in (read_tensors, read_shapes):
        assert refusal(read, tmp_path / "file").startswith(f"{tmp_path / 'file'}: ")


def test_a_seal_of_another_size_is_told_before_anything_is_read(tmp_path, refusal, seal_of):
    save_file({"a": torch.zeros(3)}, tmp_path / "file")
    seal = seal_of(b"x")
    size = (tmp_path / "file").stat().st_size
    told = f"{tmp_path / 'file'}: is damaged, it has {size} bytes instead of 1. Use another checkpoint."
    assert refusal(read_tensors, tmp_path / "file", seal) == told
