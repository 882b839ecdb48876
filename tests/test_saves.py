"""What the run makes of the answers to `write_checkpoint`: there, behind the training, or failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys import Classifier, pairs, trainer_for
from trainer_core import Saving, Signal


class Writer:
    """Answers as it is told, update by update, and ends what is behind when that is said."""

    def __init__(self, answers, ends=()):
        self.answers, self.ends, self.seen = dict(answers), dict(ends), []

    def on_step_end(self, trainer):
        step = trainer.state.global_step
        if step in self.ends:
            saved, folder = self.ends[step]
            trainer.finish_save(saved, folder)
        self.seen.append((step, trainer.state.last_save_step))
        if step in self.answers:
            trainer.request(Signal.SAVE, by="test", why="it is due")

    def write_checkpoint(self, trainer):
        answer = self.answers[trainer.state.global_step]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Noting:
    def __init__(self):
        self.saves, self.begun = [], 0

    def on_step_begin(self, trainer):
        self.begun = trainer.state.global_step + 1

    def on_save(self, trainer, checkpoint):
        self.saves.append((checkpoint.name, trainer.state.global_step, trainer.state.epoch, self.begun))


def run(tmp_path, *plugins):
    options = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "block_plugins": ["checkpointing", "console", "logging"],
    }
    trainer = trainer_for(tmp_path, Classifier(), pairs(8), given={"plugins": list(plugins)}, **options)
    trainer.train()
    return trainer


def test_a_save_behind_is_announced_at_the_boundary_after_its_end_with_the_counters_of_its_moment(tmp_path):
    noting, writer = Noting(), Writer({2: Saving.BEHIND}, {5: (2, Path("checkpoint-2"))})
    trainer = run(tmp_path, noting, writer)
    assert noting.saves == [("checkpoint-2", 2, 0.5, 5)]
    assert (trainer.state.global_step, trainer.state.epoch, trainer.state.last_save_step) == (6, 1.5, 2)


def test_a_save_that_failed_is_neither_announced_nor_claimed(tmp_path):
    noting = Noting()
    answers = {1: Path("checkpoint-1"), 2: Saving.FAILED, 3: Saving.BEHIND}
    writer = Writer(answers, {5: (3, None)})
    trainer = run(tmp_path, noting, writer)
    assert [name for name, *_ in noting.saves] == ["checkpoint-1"]
    assert writer.seen == [(1, -1), (2, 1), (3, 1), (4, 3), (5, 1), (6, 1)]
    assert trainer.state.last_save_step == 1


def test_a_writer_that_raises_claims_nothing(tmp_path):
    writer = Writer({3: OSError("the disk")})
    with pytest.raises(OSError, match="the disk"):
        run(tmp_path, writer)
    assert writer.seen[-1] == (3, -1)


def test_the_counters_are_those_of_the_run_again_when_an_announcement_fails(tmp_path):
    class Failing:
        def on_save(self, trainer):
            self.trainer = trainer
            raise LookupError("mine")

    failing = Failing()
    with pytest.raises(LookupError, match="mine"):
        run(tmp_path, failing, Writer({2: Saving.BEHIND}, {5: (2, Path("checkpoint-2"))}))
    assert failing.trainer.state.global_step == 5


def test_a_run_says_when_it_is_about_to_end(tmp_path):
    seen = []

    class Asking:
        def on_step_end(self, trainer):
            seen.append(trainer.is_stopping)
            if trainer.state.global_step == 4:
                trainer.request(Signal.STOP, by="test", why="enough")
                seen.append(trainer.is_stopping)

    trainer = run(tmp_path, Asking())
    assert seen == [False, False, False, False, True]
    assert not trainer.is_stopping
