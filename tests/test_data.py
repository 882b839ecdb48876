from __future__ import annotations

import os
import random
import signal
import subprocess
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from trainer_core.data.collation import default_data_collator
from trainer_core.data.columns import model_columns
from trainer_core.data.loaders import build_eval_loader, build_train_loader
from trainer_core.data.reading import stream
from trainer_core.data.workers import started
from trainer_core.errors import DataError

CPU = torch.device("cpu")
DEFAULTS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "seed": 1,
    "data_seed": None,
    "dataloader_drop_last": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": True,
    "dataloader_persistent_workers": False,
    "dataloader_prefetch_factor": None,
    "dataloader_multiprocessing_context": None,
    "stop_signals": ["SIGINT", "SIGTERM"],
    "train_sampling_strategy": "random",
    "length_column_name": "length",
    "remove_unused_columns": True,
}


def arguments(**changes):
    return SimpleNamespace(**{**DEFAULTS, **changes})


def train_stream(dataset, collate=default_data_collator, *, world_size=1, rank=0, columns=None, **changes):
    args = arguments(**changes)
    return stream(
        build_train_loader(dataset, collate, args, device=CPU, world_size=world_size, rank=rank, columns=columns)
    )


def eval_stream(dataset, collate=default_data_collator, *, world_size=1, rank=0, **changes):
    return stream(
        build_eval_loader(dataset, collate, arguments(**changes), device=CPU, world_size=world_size, rank=rank)
    )


def draw():
    """A number from each generator, and deviates that generators keep one of."""
    return torch.tensor(
        [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.randn(()).item()]
    )


def states():
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()
    drawn = [draw(), draw()]
    random.setstate(saved[0])
    np.random.set_state(saved[1])
    torch.set_rng_state(saved[2])
    return torch.stack(drawn)


class Counting(Dataset):
    def __init__(self, length=22):
        self.length = length
        self.loaded = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.loaded.append(index)
        return torch.tensor([float(index)]), index


class Drawing(Dataset):
    """Every third sample draws, from one generator or all."""

    def __init__(self, kind="all"):
        self.kind = kind

    def __len__(self):
        return 22

    def __getitem__(self, index):
        drawn = torch.zeros(5)
        if index % 3 == 0:
            drawn = draw() if self.kind == "all" else torch.full((5,), random.random())
        return {"index": index, "drawn": drawn}


class DrawingBatches(Drawing):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Items(IterableDataset):
    """An endless kind of augmentation over a stream; the order is drawn too."""

    def __init__(self, length=22):
        self.length = length
        self.epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = list(range(self.length))
        random.shuffle(order)
        for index in order:
            yield {"index": index, "epoch": self.epoch, "drawn": draw()}


def drawing_collator(features):
    batch = default_data_collator(features)
    batch["noise"] = draw()
    return batch


def plain(batches):
    """Batches as comparable lists."""
    return [{key: value.tolist() for key, value in batch.items()} for batch in batches]


def rows(batches):
    return [index for batch in batches for index in batch[1].tolist()]


@pytest.mark.parametrize(
    "dataset", [Drawing(), Drawing("python"), DrawingBatches(), Items()], ids=lambda d: type(d).__name__
)
@pytest.mark.parametrize("collate", [default_data_collator, drawing_collator], ids=["still", "drawing"])
@pytest.mark.parametrize("build", [train_stream, eval_stream], ids=["train", "eval"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_augmented_batches_are_equal_with_workers_after_a_cut_and_leave_the_runs_states(dataset, collate, build):
    run = states()
    alone = build(dataset, collate)
    expected = [plain(alone.epoch(epoch)) for epoch in (0, 1)]
    assert expected[0] != expected[1]
    assert torch.equal(states(), run)
    draw()
    run = states()
    for workers in (0, 2):
        for persistent in (False, True) if workers else (False,):
            resumed = build(dataset, collate, dataloader_num_workers=workers, dataloader_persistent_workers=persistent)
            assert plain(resumed.epoch(0, 2)) == expected[0][2:]
            assert plain(resumed.epoch(1)) == expected[1]
            assert torch.equal(states(), run)


@pytest.mark.parametrize("dataset", [Drawing(), Items()], ids=lambda d: type(d).__name__)
def test_an_epoch_that_is_left_early_leaves_nothing_to_the_next(dataset):
    expected = plain(train_stream(dataset).epoch(1))
    batches = train_stream(dataset, dataloader_num_workers=1, dataloader_persistent_workers=True)
    next(batches.epoch(0))
    assert plain(batches.epoch(1)) == expected


@pytest.mark.parametrize("dataset", [Drawing(), Items()], ids=lambda d: type(d).__name__)
def test_a_collator_draws_anew_for_each_micro_batch_epoch_and_rank(dataset):
    noises = [
        tuple(batch["noise"])
        for rank in (0, 1)
        for epoch in (0, 1)
        for batch in plain(train_stream(dataset, drawing_collator, world_size=2, rank=rank).epoch(epoch))
    ]
    assert len(set(noises)) == len(noises) == 12


def test_spawned_workers_give_the_same_batches():
    expected = plain(train_stream(Drawing()).epoch(0))
    spawned = train_stream(Drawing(), dataloader_num_workers=2, dataloader_multiprocessing_context="spawn")
    assert plain(spawned.epoch(0)) == expected


def test_a_samples_draws_depend_on_its_index_and_not_on_its_batch():
    def drawn(**changes):
        return {
            index: values
            for batch in plain(train_stream(Drawing(), **changes).epoch(0))
            for index, values in zip(batch["index"], batch["drawn"], strict=True)
        }

    assert drawn() == drawn(per_device_train_batch_size=7, train_sampling_strategy="sequential")
    assert drawn() != drawn(seed=2) == drawn(seed=5, data_seed=2)


def test_the_loader_iterated_by_a_user_gives_the_streams_batches():
    loader = build_train_loader(Drawing(), default_data_collator, arguments(), device=CPU)
    assert len(loader) == 6
    assert plain(loader) == plain(stream(loader).epoch(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.data())
def test_nothing_before_the_resume_position_is_loaded(length, world_size, size, data):
    rank = data.draw(st.integers(0, world_size - 1))
    dataset = Counting(length)
    batches = train_stream(dataset, world_size=world_size, rank=rank, per_device_train_batch_size=size)
    start = data.draw(st.integers(0, batches.num_batches))
    whole = rows(batches.epoch(3))
    before = rows(batch for _, batch in zip(range(start), batches.epoch(3), strict=False))
    dataset.loaded.clear()
    tail = rows(batches.epoch(3, start))
    assert dataset.loaded == tail == whole[len(before) :]


def test_a_user_may_set_the_order_of_data_apart_from_the_seed():
    assert rows(train_stream(Counting(), seed=1, data_seed=7).epoch(0)) == rows(
        train_stream(Counting(), seed=7).epoch(0)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_a_stream_is_dealt_as_map_style_data_is(length, world_size, size, drop_last):
    options = {"per_device_train_batch_size": size, "dataloader_drop_last": drop_last, "world_size": world_size}
    if drop_last and length < size * world_size:
        with pytest.raises(DataError, match="dataloader_drop_last: leaves nothing"):
            list(train_stream(iter_of(length), **options).epoch(0))
        return
    for rank in range(world_size):
        indexed = train_stream(range(length), rank=rank, train_sampling_strategy="sequential", **options)
        streamed = train_stream(iter_of(length), rank=rank, **options)
        assert [b.tolist() for b in streamed.epoch(0)] == [b.tolist() for b in indexed.epoch(0)]
        assert streamed.last_is_padding == indexed.last_is_padding
        assert (streamed.num_batches, streamed.is_dealt_singly) == (None, True)


def iter_of(length):
    class Numbers(IterableDataset):
        def __iter__(self):
            return iter(range(length))

    return Numbers()


def test_padding_of_a_stream_is_seen_through_a_worker():
    batches = train_stream(iter_of(9), world_size=2, rank=1, dataloader_num_workers=1)
    seen = [(batch.tolist(), batches.last_is_padding) for batch in batches.epoch(0)]
    assert seen == [([4, 5, 6, 7], False), ([8], True)]
    next(batches.epoch(1))
    assert not batches.last_is_padding


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5))
def test_evaluation_gives_every_row_once_whatever_the_training_options(length, world_size, size):
    options = {
        "per_device_eval_batch_size": size,
        "dataloader_drop_last": True,
        "train_sampling_strategy": "group_by_length",
    }
    parts = [eval_stream(Counting(length), world_size=world_size, rank=rank, **options) for rank in range(world_size)]
    assert [row for part in parts for row in rows(part.epoch(0))] == list(range(length))
    assert sum(part.num_rows for part in parts) == length
    for rank in range(world_size):
        part = eval_stream(iter_of(length), world_size=world_size, rank=rank, **options)
        assert [row for batch in part.epoch(0) for row in batch.tolist()] == list(range(length))[rank::world_size]


def test_a_stream_with_a_length_knows_its_batches():
    class Sized(Items):
        def __len__(self):
            return 22

    for rank in range(3):
        for build in (train_stream, eval_stream):
            batches = build(Sized(), world_size=3, rank=rank)
            assert batches.num_batches == len(list(batches.epoch(0)))


def test_a_stream_is_read_by_one_worker_and_says_so(caplog):
    train_stream(Items(), dataloader_num_workers=2)
    assert caplog.messages == [
        "dataloader_num_workers: a dataset without a length is read by 1 worker, got 2. More would change its order or "
        "read it several times over."
    ]


TENSORS = TensorDataset(torch.randn(22, 3), torch.arange(22))


@pytest.mark.parametrize("dataset", [TENSORS, Subset(TENSORS, [5, -1, 3, 0, 7, 7])], ids=["whole", "subset"])
def test_tensors_indexed_once_equal_tensors_stacked(dataset):
    fast = list(train_stream(dataset).epoch(0))
    slow = list(train_stream(dataset, partial(default_data_collator)).epoch(0))
    assert [type(batch) for batch in fast] == [tuple] * len(slow)
    for one, other in zip(fast, slow, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def test_batched_fetch_is_used_where_there_is_one():
    class Batched(Counting):
        def __getitems__(self, indices):
            self.loaded.append(list(indices))
            return [(0.0, index) for index in indices]

    dataset = Batched(8)
    assert dataset.loaded == []
    assert sorted(rows(train_stream(dataset).epoch(0))) == list(range(8))
    assert [len(batch) for batch in dataset.loaded] == [4, 4]


def test_a_datasets_dataset_is_trained_on_without_its_unused_columns():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"x": [[1.0], [2.0], [3.0]], "label": [0, 1, 2], "length": [9, 1, 5]})

    def forward(x, labels=None):
        return x

    batches = train_stream(
        dataset,
        columns=model_columns(forward, None),
        train_sampling_strategy="group_by_length",
        per_device_train_batch_size=1,
    )
    first = next(batches.epoch(0))
    assert {key: value.tolist() for key, value in first.items()} == {"x": [[1.0]], "labels": [0]}


class Broken(Counting):
    def __getitem__(self, index):
        if index == 9:
            raise KeyError("missing key")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_is_named_with_batch_and_epoch(workers):
    batches = train_stream(Broken(), train_sampling_strategy="sequential", dataloader_num_workers=workers)
    with pytest.raises(KeyError, match="missing key") as caught:
        list(batches.epoch(1, 1))
    place = "while fetching samples [8, 9, 10, 11] of training micro-batch 2, epoch 1"
    if workers:
        assert place in str(caught.value)
        place = "while fetching micro-batch 2, epoch 1"
    assert caught.value.__notes__ == [place]


def test_a_collator_that_raises_is_named_and_the_states_come_back():
    def collate(features):
        draw()
        raise ZeroDivisionError("mine")

    run = states()
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        list(eval_stream(Counting(), collate).epoch(0))
    place = "while fetching samples [0, 1, 2] of evaluation micro-batch 0, epoch 0"
    assert caught.value.__notes__ == ["raised in data_collator", place]
    assert torch.equal(states(), run)


def test_an_item_of_a_stream_that_raises_is_named():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(6)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone") as caught:
        list(train_stream(Stream()).epoch(0))
    assert caught.value.__notes__ == ["while reading item 6 of the training dataset, micro-batch 1, epoch 0"]


def test_stop_iteration_from_a_sample_does_not_end_the_epoch():
    class Stopping(Counting):
        def __getitem__(self, index):
            return next(iter([]))

    with pytest.raises(DataError, match="raised StopIteration while fetching samples"):
        list(train_stream(Stopping()).epoch(0))


class Dying(Counting):
    def __getitem__(self, index):
        if index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_an_error_that_says_what_to_do():
    batches = train_stream(Dying(), train_sampling_strategy="sequential", dataloader_num_workers=2)
    with pytest.raises(
        DataError, match=r"^dataloader_num_workers: a dataloader worker died, got 'DataLoader worker .*=0"
    ):
        list(batches.epoch(0))


@pytest.mark.parametrize(
    ("dataset", "build", "message"),
    [
        ([], train_stream, "train_dataset: has no samples, got length 0"),
        ([], eval_stream, "eval_dataset: has no samples, got length 0"),
        (3, train_stream, "train_dataset: needs __getitem__ and __len__, or __iter__, got int"),
        (iter_of(0), train_stream, "training dataset: gave no sample in epoch 0"),
        (iter_of(0), eval_stream, "evaluation dataset: gave no sample in epoch 0"),
    ],
)
def test_data_that_cannot_be_used_is_refused(dataset, build, message):
    with pytest.raises(DataError, match=message):
        list(build(dataset).epoch(0))


def test_grouping_needs_a_length():
    with pytest.raises(DataError, match="group_by_length needs a dataset with a length, got Items"):
        train_stream(Items(), train_sampling_strategy="group_by_length")


def test_measuring_lengths_leaves_the_runs_states():
    class Texts(Counting):
        def __getitem__(self, index):
            draw()
            return {"input_ids": [0] * (index + 1)}

    run = states()
    batches = train_stream(Texts(), train_sampling_strategy="group_by_length", per_device_train_batch_size=1)
    assert next(batches.epoch(0))["input_ids"].shape == (1, 22)
    assert torch.equal(states(), run)


def test_a_map_style_dataset_is_told_the_epoch_in_its_worker():
    class Told(Counting):
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __getitem__(self, index):
            return self.epoch, index

    batches = train_stream(Told(), dataloader_num_workers=2, dataloader_persistent_workers=True)
    for epoch in (0, 1, 4):
        assert {number for batch in batches.epoch(epoch) for number in batch[0].tolist()} == {epoch}


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_a_worker_leaves_sigterm_to_its_main_process_and_ends_by_that_of_it(context):
    loader = build_train_loader(
        Counting(),
        default_data_collator,
        arguments(dataloader_num_workers=1, dataloader_multiprocessing_context=context),
        device=CPU,
    )
    batches = started(loader)
    (worker,) = batches._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(batches)) == 6
    batches = started(loader)
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_loader_is_a_dataloader_of_the_settings():
    loader = build_train_loader(
        Counting(), default_data_collator, arguments(dataloader_num_workers=2, dataloader_prefetch_factor=5), device=CPU
    )
    assert type(loader) is DataLoader
    assert (loader.num_workers, loader.prefetch_factor, loader.pin_memory) == (2, 5, False)
    on_gpu = build_train_loader(Counting(), default_data_collator, arguments(), device=torch.device("cuda"))
    assert on_gpu.pin_memory
