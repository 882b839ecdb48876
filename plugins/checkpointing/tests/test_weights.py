"""Weights come back to the bit from what a model wrote, whole or in shards, and go into no other model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainer_core import CheckpointError, write_model
from trainer_core_checkpointing.weights import read_model


class Tied(nn.Module):
    """Two names for one weight, a buffer, and a view of a transposed tensor."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.full((), float(seed)))
        self.register_buffer("turned", torch.randn(3, 2).T)
        self.register_buffer("hidden", torch.ones(2), persistent=False)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=16))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=50)
    )


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("build", [Tied, linear, lambda seed: nn.BatchNorm1d(3)])
def test_weights_come_back_to_the_bit(tmp_path, build):
    model, other = build(1), build(2)
    write_model(model, tmp_path)
    read_model(other, tmp_path)
    assert same_state(state(other), state(model))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensors_that_share_memory_are_written_once_and_stay_shared(tmp_path):
    write_model(Tied(1), tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert len(names & {"embedding.weight", "head.weight"}) == 1
    assert names >= {"head.bias", "count", "turned"}
    other = Tied(2)
    read_model(other, tmp_path)
    assert other.head.weight is other.embedding.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_are_kept(tmp_path, dtype):
    model, other = linear(1).to(dtype), linear(2).to(dtype)
    write_model(model, tmp_path)
    read_model(other, tmp_path)
    assert same_state(state(other), state(model))


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_transformers_model_writes_what_it_reads_itself(tmp_path, build):
    model = build()
    write_model(model, tmp_path)
    assert same_state(state(type(model).from_pretrained(tmp_path)), state(model))
    other = build()
    read_model(other, tmp_path)
    assert same_state(state(other), state(model))


def test_shards_are_read(tmp_path):
    model, other = llama(), llama()
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert len(set(index["weight_map"].values())) > 1
    read_model(other, tmp_path)
    assert same_state(state(other), state(model))


def test_a_missing_shard_is_named(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"has no {shard.name}. Pass a folder that save_model"):
        read_model(llama(), tmp_path)


class Small(nn.Module):
    def __init__(self, width=2, names=("a", "b")):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(width, 2))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Small(width=3), r"holds another model, a.weight has shape \(2, 2\) there and \(2, 3\) here"),
        (Small(names="abc"), "holds another model; missing there: c.weight, c.bias. Build the model as it was"),
        (Small(names="a"), "holds another model; unknown here: b.bias, b.weight. Build the model"),
        (Small(names="acdef"), "missing there: c.weight, c.bias, d.weight and 5 more. unknown here: b.bias, b.weight"),
    ],
)
def test_weights_of_another_model_are_refused_and_nothing_is_loaded(tmp_path, other, message):
    write_model(Small(), tmp_path)
    before = state(other)
    with pytest.raises(CheckpointError, match=message):
        read_model(other, tmp_path)
    assert same_state(state(other), before)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors\. Pass a folder that save_model"):
        read_model(Small(), tmp_path)
