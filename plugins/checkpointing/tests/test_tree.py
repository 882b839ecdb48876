"""A state comes back from JSON and safetensors exactly as it was."""

from __future__ import annotations

import json
import math
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_core import CheckpointError
from trainer_core_checkpointing import files
from trainer_core_checkpointing.content import files_of_tree
from trainer_core_checkpointing.tree import MAX_DEPTH, decode, encode, read_tree

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]

tensors = st.builds(
    lambda dtype, shape, seed: (100 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 2**31),
)
keys = st.one_of(
    st.text(max_size=12), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text(max_size=2))
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=8), tensors)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.sampled_from(["__tensor__", "__tuple__", "__dict__", "a"]), inner, max_size=2),
    ),
    max_leaves=12,
)


def write_tree(tree, folder, name):
    for file in files_of_tree(tree, name):
        files.write_file(folder / file.name, file.pieces(), file.num_bytes, in_parallel=False)


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.contiguous().flatten().view(torch.uint8).tolist() == other.flatten().view(torch.uint8).tolist()
    elif isinstance(one, dict):
        assert len(one) == len(other)
        for mine, theirs in zip(one.items(), other.items(), strict=True):  # the order of keys counts
            same(mine[0], theirs[0])
            same(mine[1], theirs[1])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            same(mine, theirs)
    elif isinstance(one, float):
        assert (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    else:
        assert one == other


@given(trees)
@settings(max_examples=300, deadline=None)
def test_any_tree_comes_back(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree")
    write_tree(tree, folder, "state")
    same(tree, read_tree(folder, "state"))


def test_an_integer_of_any_size_comes_back(tmp_path):
    tree = [2**63 - 1, 2**63, -(2**63) - 1, 10**6000, -(10**6000)]
    write_tree(tree, tmp_path, "state")
    assert read_tree(tmp_path, "state") == tree


def test_the_json_is_of_the_standard(tmp_path):
    write_tree({"a": [math.inf, -math.inf, math.nan]}, tmp_path, "state")
    json.loads((tmp_path / "state.json").read_text(), parse_constant=pytest.fail)


def test_views_and_shared_memory_are_written_as_tensors_of_their_own(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tree = {"base": base, "again": base, "row": base[1], "turned": base.t()}
    write_tree(tree, tmp_path, "state")
    same({**tree, "turned": base.t().contiguous()}, read_tree(tmp_path, "state"))


def test_subclasses_come_back_as_what_they_are_kinds_of(tmp_path):
    write_tree({"a": OrderedDict(x=torch.Size([2, 3]))}, tmp_path, "state")
    assert read_tree(tmp_path, "state") == {"a": {"x": (2, 3)}}


def test_names_of_tensors_are_their_places(tmp_path):
    found = {}
    encode({"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "list": [torch.zeros(1)]}, found)
    assert sorted(found) == [".list.0", ".optimizer.state.0.step"]


def test_what_would_need_pickling_is_refused_by_name():
    with pytest.raises(CheckpointError) as caught:
        encode({"plugins": {"mine": [1, {2, 3}]}}, {}, where="state")
    assert str(caught.value) == (
        "state.plugins.mine.1: cannot be saved without pickling, got set. "
        "Keep numbers, strings, lists, tuples, dicts and tensors in the state."
    )


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.zeros(1, dtype=torch.complex64)])
def test_a_tensor_that_safetensors_does_not_hold_is_refused_by_name(tensor):
    with pytest.raises(CheckpointError, match=r"^state\.x: safetensors holds no such tensor"):
        encode({"x": tensor}, {}, where="state")


def test_depth_is_bounded_both_ways(tmp_path):
    deep: object = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(CheckpointError, match="is nested more than"):
        encode(deep, {}, where="state")
    (tmp_path / "state.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read"):
        read_tree(tmp_path, "state")


@pytest.mark.parametrize(
    "value",
    [
        {"__tensor__": "missing"},
        {"__tensor__": ["a"]},
        {"__number__": 1},
        {"__number__": "none"},
        {"__dict__": [1]},
        {"__dict__": [[[1], 2]]},
        {"__tuple__": 1},
        {"__bytes__": "§"},
        {"__object__": "os.system"},
    ],
)
def test_a_damaged_mark_is_an_error_of_ours(value):
    with pytest.raises(CheckpointError):
        decode(value, {}, where="state")


def test_a_file_that_is_no_safetensors_is_an_error_of_ours(tmp_path):
    write_tree({"x": torch.zeros(2)}, tmp_path, "state")
    (tmp_path / "state.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match=r"state\.safetensors: is no safetensors"):
        read_tree(tmp_path, "state")
