"""What we write in the safetensors format is what its own reader reads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn

from trainer_core import CheckpointError
from trainer_core_checkpointing import files, tensorfile
from trainer_core_checkpointing.weights import model_tensors


def write(path, tensors, metadata=None):
    header = tensorfile.header_of(tensors, metadata)
    size = len(header) + tensorfile.num_bytes(tensors)
    files.write_file(path, [header, *tensorfile.bytes_of(tensors)], size, in_parallel=False)
    assert path.stat().st_size == size


@pytest.mark.parametrize("dtype", tensorfile.CODES, ids=str)
def test_every_type_is_read_back_to_the_bit(dtype, tmp_path):
    raw = torch.randint(0, 2 if dtype is torch.bool else 100, (3, 16), dtype=torch.uint8)
    tensors = {"a": raw.view(dtype), "b": raw.view(dtype)[0, :1].reshape(()), "c": raw.view(dtype)[:0]}
    write(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (dtype, tensor.shape)
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8))


def test_views_transposed_and_shared_tensors_are_written_whole(tmp_path):
    base = torch.arange(24.0)
    tensors = {"view": base[3:9], "other": base[6:12], "turned": base.reshape(4, 6).t(), "same": base[3:9], "é": base}
    write(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensors_begin_where_their_elements_are_aligned(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5), "c": torch.ones(1, dtype=torch.float64)}
    header = tensorfile.header_of(tensors)
    entries = json.loads(header[8:])
    assert len(header) % 8 == 0
    assert [(name, entry["data_offsets"]) for name, entry in entries.items()] == [
        ("c", [0, 8]),
        ("b", [8, 28]),
        ("a", [28, 31]),
    ]


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.complex128), torch.eye(2).to_sparse()])
def test_a_tensor_that_the_format_lacks_is_refused_by_name(tensor):
    with pytest.raises(CheckpointError, match=r"^weird: safetensors holds no such tensor, got torch\."):
        tensorfile.header_of({"weird": tensor})


def test_a_model_with_tied_weights_is_read_by_the_library(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("none", torch.zeros(0))

    model, other = Tied(), Tied()
    tensors, metadata = model_tensors(model)
    assert list(tensors) == ["none", "embed.weight"]
    assert metadata == {"format": "pt", "head.weight": "embed.weight"}
    write(tmp_path / "model.safetensors", tensors, metadata)
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(other.head.weight, model.head.weight)
