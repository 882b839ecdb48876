from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import DataError
from trainer_core.collection import BatchCollector, Collector, Rows, as_array, chained, concatenated, map_tree

ONE = torch.ones(1)
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=8)


def batches(sizes):
    return torch.arange(2 * sum(sizes), dtype=torch.float32).reshape(-1, 2).split(list(sizes))


def collected(outputs, *, capacity=None, flush_every=1):
    collector = Collector(capacity, flush_every)
    for output in outputs:
        collector.add(output)
    return collector.arrays()


@given(SIZES, st.none() | st.integers(0, 50), st.sampled_from([None, 1, 3]))
def test_batches_are_collected_in_order_whatever_is_known_beforehand(sizes, capacity, flush_every):
    parts = batches(sizes)
    np.testing.assert_array_equal(collected(parts, capacity=capacity, flush_every=flush_every), torch.cat(parts))


def test_a_known_number_of_rows_is_allocated_once():
    rows = Rows(7)
    rows.add(torch.ones(3, 2))
    buffer = rows.buffer
    rows.add(torch.ones(4, 2))
    assert rows.buffer is buffer
    assert rows.array().base is not None
    assert rows.array().shape == (7, 2)


@given(SIZES)
def test_growing_copies_each_row_a_bounded_number_of_times(sizes):
    rows, copied = Rows(None), 0
    grow = rows._grow

    def counting(end, new):
        nonlocal copied
        copied += rows.filled
        grow(end, new)

    rows._grow = counting
    for part in batches(sizes * 20):
        rows.add(part)
    assert copied <= 2 * rows.filled


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6))
def test_ragged_outputs_are_padded_up_to_the_longest(shapes):
    array = collected([torch.full(shape, float(number)) for number, shape in enumerate(shapes)])
    assert array.shape == (sum(s[0] for s in shapes), max(s[1] for s in shapes), max(s[2] for s in shapes))
    start = 0
    for number, (rows, width, depth) in enumerate(shapes):
        part = array[start : start + rows]
        assert (part[:, :width, :depth] == number).all()
        assert (part[:, width:] == -100).all()
        assert (part[:, :, depth:] == -100).all()
        start += rows


def test_padding_holds_in_a_buffer_that_was_allocated_for_all_rows():
    array = collected([torch.ones(2, 3), torch.ones(2, 1)], capacity=4)
    assert array.tolist() == [[1, 1, 1]] * 2 + [[1, -100, -100]] * 2


def test_the_wider_type_wins():
    array = collected([torch.tensor([1, 2]), torch.tensor([0.5])], capacity=3)
    assert array.tolist() == [1.0, 2.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_types_are_those_of_the_outputs_where_numpy_has_them(dtype):
    values = torch.tensor([0, 1, 1]).to(dtype)
    array = collected([values])
    assert array.tolist() == as_array(values).tolist() == [0, 1, 1]
    assert str(array.dtype) == {torch.bfloat16: "float32"}.get(dtype, str(dtype).removeprefix("torch."))


def test_structures_are_kept_and_absent_parts_left_out():
    parts = [{"a": part, "b": (part[:, 0], [part + 1]), "no": None, "c": (None, part)} for part in batches([2, 3])]
    whole = torch.cat(batches([2, 3])).numpy()
    found = collected(parts)
    assert set(found) == {"a", "b", "c"}
    np.testing.assert_array_equal(found["a"], whole)
    np.testing.assert_array_equal(found["b"][0], whole[:, 0])
    np.testing.assert_array_equal(found["b"][1][0], whole + 1)
    np.testing.assert_array_equal(found["c"][0], whole)


def test_scalars_are_one_row_each():
    assert collected([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1, 2]


def test_nothing_collected_gives_nothing():
    assert collected([]) is None
    assert collected([None, None]) is None


def test_gradients_and_later_changes_do_not_reach_what_was_collected():
    part = torch.ones(2, requires_grad=True)
    collector = Collector(None, 1)
    collector.add(part * 1)
    with torch.no_grad():
        part.zero_()
    assert collector.arrays().tolist() == [1, 1]


@pytest.mark.parametrize("collector", [Collector(None, 1), BatchCollector(None, 1)])
def test_text_that_belongs_to_no_row_cannot_be_collected(collector):
    with pytest.raises(DataError, match=r"evaluation: cannot collect an output of type str\. Return tensors"):
        collector.add({"a": "text"})


def test_a_list_without_tensors_has_an_object_for_each_row():
    parts = [
        {"words": ["a", None], "boxes": [[1, 2], {"x": 3}], "logits": torch.ones(2)},
        {"words": ["b"], "boxes": [[4]], "logits": torch.ones(1)},
    ]
    found = collected(parts)
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        "words": (object, ["a", None, "b"]),
        "boxes": (object, [[1, 2], {"x": 3}, [4]]),
        "logits": (np.float32, [1, 1, 1]),
    }
    joined = concatenated([found, found])
    assert joined["words"].tolist() == ["a", None, "b"] * 2
    by_batch = BatchCollector(None, 1)
    for part in parts:
        by_batch.add(part)
    assert [batch["words"].tolist() for batch in by_batch.arrays()] == [["a", None], ["b"]]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (({"a": ONE, "b": ONE}, {"a": ONE}), "outputs named a follow those named a, b"),
        (({"a": ONE, "b": None}, {"a": ONE, "b": ONE}), "outputs named a, b follow those named a"),
        (((ONE, ONE), (ONE,)), "outputs of 1 parts follow those of 2"),
        (((ONE, None), (ONE, ONE)), "outputs of 2 parts follow those of 1"),
        (({}, {"a": ONE}), "outputs named a follow those named "),
        (((None,), (ONE,)), "outputs of 1 parts follow those of 0"),
        ((ONE, {"a": ONE}), "outputs of type dict follow those of another type"),
        (({"a": ONE}, ONE), "outputs of type Tensor follow those of another type"),
        (((ONE,), ONE), "outputs of type Tensor follow those of another type"),
        ((["text"], ONE), "outputs of type Tensor follow those of another type"),
        ((ONE, ["text"]), "outputs of type list follow those of another type"),
    ],
)
def test_batches_of_different_structure_are_refused(parts, told):
    with pytest.raises(DataError) as caught:
        collected(parts)
    assert str(caught.value) == (
        f"evaluation: {told}. Give every batch the same structure, name what comes and goes in ignore_keys, or set "
        f"eval_do_concat_batches=False."
    )
    by_batch = BatchCollector(None, 1)
    for part in parts:
        by_batch.add(part)
    assert len(by_batch.arrays()) == 2


def test_outputs_wait_on_the_device_until_so_many_batches_are_there():
    collector = Collector(None, 3)
    for number in range(7):
        collector.add(torch.ones(1))
        assert len(collector.waiting) == (number + 1) % 3
    never = Collector(None, None)
    for _ in range(7):
        never.add(torch.ones(1))
    assert (len(never.waiting), len(never.arrays()), never.waiting) == (7, 7, [])


def test_another_number_of_dimensions_is_refused():
    with pytest.raises(DataError, match=r"evaluation: outputs of shape \(2,\) follow outputs of 2 dimensions"):
        collected([torch.ones(2, 2), torch.ones(2)])


def test_a_batch_collector_keeps_each_batch_in_its_own_shape():
    collector = BatchCollector(None, 2)
    for part in (torch.ones(2, 3), torch.ones(1, 5, dtype=torch.bfloat16)):
        collector.add({"a": part, "b": (None, part)})
    collector.add(None)
    assert [(batch["a"].shape, batch["b"][0].shape) for batch in collector.arrays()] == [
        ((2, 3), (2, 3)),
        ((1, 5), (1, 5)),
    ]
    assert BatchCollector(None, 1).arrays() is None


# Ranks ------------------------------------------------------------------------------------------------------------


@given(SIZES)
def test_the_shares_of_ranks_are_joined_in_their_order(sizes):
    parts = [part.numpy() for part in batches(sizes)]
    joined = concatenated([{"a": (part, part + 1)} for part in parts] + [None])
    np.testing.assert_array_equal(joined["a"][0], np.concatenate(parts))
    np.testing.assert_array_equal(joined["a"][1], np.concatenate(parts) + 1)
    assert concatenated([None, None]) is None


def test_shares_of_different_widths_are_padded():
    joined = concatenated([np.ones((1, 2)), np.ones((1, 3))])
    assert joined.tolist() == [[1, 1, -100], [1, 1, 1]]


def test_batches_of_ranks_are_chained_rank_after_rank_or_by_turns():
    shares = [["a", "b", "c"], ["d"], None]
    assert chained(shares, by_turns=False) == ["a", "b", "c", "d"]
    assert chained(shares, by_turns=True) == ["a", "d", "b", "c"]
    assert chained([None, None], by_turns=True) is None


def test_a_function_is_applied_to_every_leaf():
    assert map_tree(lambda leaf: leaf + 1, {"a": [1, (2, None)]}) == {"a": (2, (3, None))}
    assert map_tree(lambda leaf: leaf + 1, None) is None
