from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from trainer_core.data.reading import dead_worker, stream


class Rows(Dataset):
    def __init__(self):
        self.loaded = []

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.loaded.append(index)
        return index


def lists(batches):
    return [batch.tolist() for batch in batches]


def shuffled(dataset, **options):
    return DataLoader(dataset, batch_size=3, shuffle=True, **options)


LOADERS = {
    "shuffled": shuffled,
    "with a generator": lambda rows: shuffled(rows, generator=torch.Generator().manual_seed(5)),
    "with workers": lambda rows: shuffled(rows, num_workers=2, persistent_workers=True),
    "with replacement": lambda rows: DataLoader(rows, 3, sampler=RandomSampler(rows, replacement=True, num_samples=20)),
    "unbatched": lambda rows: DataLoader(rows, batch_size=None, shuffle=True, collate_fn=torch.tensor),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_users_loader_is_resumed_without_loading_what_came_before(make):
    whole = stream(make(Rows()), seed=3)
    expected = [lists(whole.epoch(epoch)) for epoch in (0, 1)]
    assert expected[0] != expected[1]
    torch.rand(7)
    before, rows = torch.get_rng_state(), Rows()
    loader = make(rows)
    resumed = stream(loader, seed=3)
    assert resumed.num_batches == len(expected[0])
    assert lists(resumed.epoch(1, 4)) == expected[1][4:]
    assert torch.equal(torch.get_rng_state(), before)
    if loader.num_workers == 0:
        assert (
            rows.loaded
            == torch.tensor(expected[1][4:-1]).flatten().tolist() + torch.tensor(expected[1][-1:]).flatten().tolist()
        )


def test_the_first_epoch_of_a_users_generator_is_as_without_us():
    make = LOADERS["with a generator"]
    assert lists(stream(make(Rows())).epoch(0)) == lists(make(Rows()))


def test_a_users_loader_is_left_as_it_was():
    loader = shuffled(Rows())
    sampler = loader.batch_sampler
    list(stream(loader).epoch(0, 2))
    assert loader.batch_sampler is sampler


def test_a_loader_whose_workers_already_run_can_be_read():
    loader = shuffled(Rows(), num_workers=1, persistent_workers=True)
    list(loader)
    expected = lists(stream(shuffled(Rows())).epoch(0))
    assert lists(stream(loader).epoch(0, 2)) == expected[2:]


def test_whoever_has_set_epoch_is_told():
    class Sampler(RandomSampler):
        told = ()

        def set_epoch(self, epoch):
            self.told += (epoch,)

    rows = Rows()
    sampler = Sampler(rows)
    batches = stream(DataLoader(rows, batch_size=3, sampler=sampler))
    list(batches.epoch(0))
    list(batches.epoch(4, 1))
    assert sampler.told == (0, 4)


def test_a_users_iterable_loader_and_any_iterable_skip_batches():
    class Numbers(IterableDataset):
        def __iter__(self):
            return iter(range(10))

    loader = stream(DataLoader(Numbers(), batch_size=4))
    assert (loader.num_batches, lists(loader.epoch(0, 1))) == (None, [[4, 5, 6, 7], [8, 9]])
    anything = stream(["a", "b", "c"])
    assert (anything.num_batches, list(anything.epoch(0, 1))) == (3, ["b", "c"])


def test_an_error_in_a_users_loader_is_named():
    def collate(samples):
        raise ValueError("mine")

    batches = stream(DataLoader(TensorDataset(torch.ones(4)), batch_size=2, collate_fn=collate))
    with pytest.raises(ValueError, match="mine") as caught:
        list(batches.epoch(2, 1))
    assert caught.value.__notes__ == ["while fetching micro-batch 1, epoch 2"]


def test_only_a_dead_worker_is_taken_for_one():
    assert dead_worker(RuntimeError("size mismatch")) is None
    assert dead_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")) is not None
