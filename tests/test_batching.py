from __future__ import annotations

import pytest

from tests.toys import Classifier, pairs, trainer_for
from trainer_core import SettingsError, TrainingArguments
from trainer_core.batching import Batching, kept_batching, new_batching


def args(size, accumulation=1):
    return TrainingArguments("out", per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)


def test_a_run_that_begins_is_cut_as_the_settings_say():
    batching = new_batching(args(4, 3), world_size=2)
    assert batching == Batching(batch_size=4, accumulation=3, world_size=2, window=8)
    assert (batching.global_batch_size, str(batching)) == (24, "4 a micro-batch × 3 accumulated × 2 ranks")


@pytest.mark.parametrize(
    ("size", "world_size", "accumulation"), [(4, 2, 3), (4, 1, 6), (4, 3, 2), (2, 3, 4), (24, 1, 1), (1, 24, 1)]
)
def test_a_run_that_goes_on_accumulates_what_keeps_an_updates_samples(size, world_size, accumulation):
    kept = kept_batching(args(size, 99), world_size, wanted=24, window=8)
    assert kept == Batching(size, accumulation, world_size, window=8)
    assert kept.global_batch_size == 24


def test_positions_are_counted_in_windows_of_the_runs_beginning():
    kept = kept_batching(args(2), 3, wanted=24, window=8)
    assert [kept.windows(batches) for batches in (0, 4, 8)] == [0, 3, 6]


@pytest.mark.parametrize(
    ("size", "world_size", "wanted", "remedy"),
    [
        (5, 3, 24, "1, 2, 4 or 8 on 3 ranks"),
        (4, 4, 24, "1, 2, 3 or 6 on 4 ranks, or with 4 on 1, 2, 3 or 6 rank(s)"),
        (2, 5, 24, "2 on 1, 2, 3, 4, 6 or 12 rank(s)"),
        (5, 5, 24, "1 on 1, 2, 3, 4, 6, 8, 12 or 24 rank(s)"),
        (7, 1, 4096, "1, 2, 4, 8, 512, 1024, 2048 or 4096 on 1 rank"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_with_what_would_work(size, world_size, wanted, remedy):
    with pytest.raises(SettingsError) as caught:
        kept_batching(args(size), world_size, wanted, window=8)
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    assert caught.value.problems == [
        f"per_device_train_batch_size: the run has {wanted} samples an update, which {ranks} cannot share out evenly "
        f"in micro-batches of one size, got {size}. Resume with {remedy}."
    ]


def test_before_and_after_a_run_the_settings_count(tmp_path):
    trainer = trainer_for(tmp_path, Classifier(), pairs(12), per_device_train_batch_size=2)
    assert trainer.batching == Batching(2, 1, 1, window=2)
    trainer.train()
    assert (trainer.state.global_batch_size, trainer.state.data_window) == (2, 2)
    assert trainer.batching == Batching(2, 1, 1, window=2)
