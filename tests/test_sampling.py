from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.data.sampling import BatchIndices, EpochOrder, EvalOrder, eval_rows, restore_order
from trainer_core.errors import DataError

sizes = st.integers(1, 200)
worlds = st.integers(1, 5)
batches = st.integers(1, 9)
seeds = st.integers(0, 2**63 - 1)
strategies = st.sampled_from(["random", "sequential", "group_by_length"])


def orders(length, world_size, **options):
    lengths = [(7 * row) % 31 for row in range(length)]
    return [
        EpochOrder(length, world_size=world_size, rank=rank, lengths=lengths, **options) for rank in range(world_size)
    ]


@given(sizes, worlds, batches, seeds, strategies, st.integers(0, 5))
def test_ranks_share_every_sample_once_and_padding_is_the_only_repeat(length, world_size, size, seed, strategy, epoch):
    seen = []
    for order in orders(length, world_size, batch_size=size, seed=seed, strategy=strategy):
        order.set_epoch(epoch)
        mine = list(order)
        assert len(mine) == len(order) == order.num_batches
        assert order.num_rows == sum(map(len, mine))
        seen += [row for batch in (mine[:-1] if order.last_is_padding else mine) for row in batch]
    assert sorted(seen) == list(range(length))


@given(sizes, worlds, batches, seeds, strategies)
def test_every_micro_batch_is_a_window_of_the_epochs_order(length, world_size, size, seed, strategy):
    ranks = orders(length, world_size, batch_size=size, seed=seed, strategy=strategy)
    order = ranks[0].order(0).tolist()
    for number, shares in enumerate(zip(*ranks, strict=True)):
        window = order[number * size * world_size :][: size * world_size]
        real = [share for rank, share in zip(ranks, shares, strict=True) if not _is_padding(rank, number)]
        assert [row for share in real for row in share] == window
        assert max(map(len, shares)) - min(map(len, real)) <= 1
        assert all(set(share) <= set(window) and share for share in shares)


@given(sizes, worlds, batches, seeds, strategies, st.integers(0, 3), st.data())
def test_the_rows_of_micro_batches_are_known_without_reading_them(
    length, world_size, size, seed, strategy, epoch, data
):
    for order in orders(length, world_size, batch_size=size, seed=seed, strategy=strategy):
        order.set_epoch(epoch)
        mine = list(order)
        start = data.draw(st.integers(0, len(mine)))
        stop = data.draw(st.integers(start, len(mine)))
        assert order.rows_of(epoch, start, stop) == [row for batch in mine[start:stop] for row in batch]


def test_the_order_of_an_epoch_is_computed_once():
    (order,) = orders(20, 1, batch_size=2, seed=0)
    assert order.order(3) is order.order(3)
    assert order.order(4).tolist() != order.order(3).tolist()


def _is_padding(order, number):
    return order.last_is_padding and number == order.num_batches - 1


@given(sizes, worlds, batches, seeds, strategies, st.integers(0, 3), st.data())
def test_resuming_gives_the_tail_of_the_uninterrupted_epoch(length, world_size, size, seed, strategy, epoch, data):
    for order in orders(length, world_size, batch_size=size, seed=seed, strategy=strategy):
        start = data.draw(st.integers(0, order.num_batches))
        order.set_epoch(epoch)
        whole = list(order)
        order.set_epoch(epoch, start)
        tail = list(order)
        assert tail == whole[start:]
        assert [(batch.epoch, batch.number) for batch in tail] == [(epoch, n) for n in range(start, len(whole))]
        assert all(batch.rows.tolist() == batch for batch in tail)


@given(sizes, worlds, batches)
def test_drop_last_keeps_full_micro_batches_only(length, world_size, size):
    if length < size * world_size:
        with pytest.raises(DataError, match="dataloader_drop_last: leaves nothing to train on, got"):
            EpochOrder(length, batch_size=size, seed=0, world_size=world_size, drop_last=True)
        return
    for order in orders(length, world_size, batch_size=size, seed=0, drop_last=True):
        assert {len(batch) for batch in order} == {size}
        assert (order.num_batches, order.last_is_padding) == (length // (size * world_size), False)


def _trained_on(ranks, start, stop=None):
    """Gives the rows of micro-batches `start` to `stop` over all ranks, in their order, without padding."""
    rows = []
    for number in range(start, ranks[0].num_batches if stop is None else stop):
        for rank in ranks:
            rank.set_epoch(2, number)
            if not _is_padding(rank, number):
                rows += next(iter(rank))
    return rows


@given(st.integers(1, 120), worlds, worlds, st.integers(1, 4), st.integers(1, 4), strategies, st.booleans(), st.data())
def test_an_epoch_goes_on_in_another_cut_without_a_sample_lost_or_doubled(
    length, world, other_world, size, times, strategy, drop_last, data
):
    update = math.lcm(world * size, other_world) * times
    other_size = data.draw(st.sampled_from([n for n in range(1, update + 1) if update % (n * other_world) == 0]))
    if drop_last and length < world * size:
        return
    same = {"seed": 5, "strategy": strategy, "drop_last": drop_last}
    before = orders(length, world, batch_size=size, **same)
    after = orders(length, other_world, batch_size=other_size, run_window=world * size, **same)
    whole = _trained_on(before, 0)
    done = data.draw(st.integers(0, len(whole) // update)) * update
    assert _trained_on(before, 0, done // (world * size)) == whole[:done]
    assert _trained_on(after, done // (other_world * other_size)) == whole[done:]
    assert after[0].num_windows == before[0].num_batches


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    def rows(seed, epoch):
        order = EpochOrder(50, batch_size=8, seed=seed)
        order.set_epoch(epoch)
        return [row for batch in order for row in batch]

    assert rows(1, 0) == rows(1, 0)
    assert len({tuple(rows(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_the_epoch_is_bound_when_iteration_starts():
    order = EpochOrder(10, batch_size=5, seed=0)
    first = iter(order)
    order.set_epoch(1)
    assert {batch.epoch for batch in first} == {0}


@given(st.integers(1, 3000), st.integers(1, 3), st.integers(1, 8), seeds)
def test_grouping_puts_the_longest_batch_first(length, world_size, size, seed):
    lengths = np.random.default_rng(seed).integers(1, 500, length)
    order = EpochOrder(
        length, batch_size=size, world_size=world_size, seed=seed, strategy="group_by_length", lengths=lengths.tolist()
    ).order(0)
    assert sorted(order) == list(range(length))
    assert lengths[order[0]] == lengths.max()


def test_grouping_makes_batches_of_like_length():
    lengths = np.random.default_rng(0).integers(1, 500, 4000)

    def spread(strategy):
        order = EpochOrder(4000, batch_size=8, seed=0, strategy=strategy, lengths=lengths.tolist())
        return np.mean([np.ptp(lengths[batch]) for batch in order])

    assert spread("group_by_length") < spread("random") / 10


def test_grouping_differs_between_epochs():
    order = EpochOrder(100, batch_size=4, seed=0, strategy="group_by_length", lengths=list(range(100)))
    assert order.order(0).tolist() != order.order(1).tolist()


def test_grouping_without_lengths_is_refused():
    with pytest.raises(DataError, match="group_by_length needs one length for each of 5 samples, got none"):
        EpochOrder(5, batch_size=2, seed=0, strategy="group_by_length")


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="train_dataset: has no samples, got length 0"):
        EpochOrder(0, batch_size=2, seed=0)


def test_batch_indices_survive_the_way_to_a_worker():
    batch = BatchIndices(np.array([3, 1]), 2, 7)
    again = pickle.loads(pickle.dumps(batch))
    assert (again, again.rows.tolist(), again.epoch, again.number) == ([3, 1], [3, 1], 2, 7)


@given(sizes, worlds, batches, st.integers(0, 4))
def test_evaluation_rows_are_contiguous_and_complete(length, world_size, size, start):
    parts = [eval_rows(length, world_size, rank) for rank in range(world_size)]
    assert [row for part in parts for row in part] == list(range(length))
    for part in parts:
        order = EvalOrder(part, size)
        assert [row for batch in order for row in batch] == list(part)
        assert order.num_batches == len(list(order))
        order.set_epoch(0, start)
        assert [row for batch in order for row in batch] == list(part[start * size :])


@given(sizes, worlds)
def test_rows_dealt_singly_come_back_in_order(length, world_size):
    parts = [np.arange(length)[rank::world_size] for rank in range(world_size)]
    assert np.concatenate(parts)[restore_order([len(part) for part in parts])].tolist() == list(range(length))
