"""What a run has trained on: samples and tokens."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from tests.toys import BLOCKED, Classifier, Rows, Stream, named_rows, pairs, trained, trainer_for
from trainer_core import DataError

LENGTHS = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5]


class Reader(nn.Module):
    """Takes token ids (batch, tokens) with a mask."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"loss": (self.weight * input_ids).mean()}


def sentences(*, has_mask=True):
    ids = torch.ones(len(LENGTHS), 6, dtype=torch.long)
    mask = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()
    return Rows(input_ids=ids, **({"attention_mask": mask} if has_mask else {}))


class Watching:
    def __init__(self):
        self.seen = []

    def on_step_end(self, trainer):
        self.seen.append(trainer.state.num_input_tokens_seen)


def seen_by(folder, rows, **options):
    plugin = Watching()
    trainer = trainer_for(folder, Reader(), rows, given={"plugins": [plugin]}, **options)
    trainer.train()
    return trainer, plugin.seen


@pytest.mark.parametrize("kind", [lambda rows: rows, Stream])
@pytest.mark.parametrize(
    ("counted", "expected"),
    [("all", [24, 48, 60]), (True, [24, 48, 60]), ("non_padding", [9, 27, 35])],
)
def test_tokens_are_counted_before_each_update_is_told(tmp_path, kind, counted, expected):
    options = {"include_num_input_tokens_seen": counted, "max_steps": 3}
    _, seen = seen_by(tmp_path, kind(sentences()), **options)
    assert seen == expected


@pytest.mark.parametrize("accumulation", [2, 3])
def test_an_update_of_several_micro_batches_counts_all_of_them(tmp_path, accumulation):
    options = {"gradient_accumulation_steps": accumulation, "include_num_input_tokens_seen": "non_padding"}
    trainer, seen = seen_by(tmp_path, sentences(), **options)
    assert seen == ([27, 35] if accumulation == 2 else [35])
    assert trainer.state.num_samples_seen == 10


def test_every_row_tells_of_tokens_and_the_last_of_their_rate(tmp_path):
    options = {"include_num_input_tokens_seen": "all", "eval_strategy": "epoch", "num_train_epochs": 2}
    given = {"eval_dataset": sentences()}
    trainer = trained(tmp_path, Reader(), sentences(), given=given, **options)
    assert [row["num_input_tokens_seen"] for row in trainer.state.log_history] == [60, 120, 120]
    closing = trainer.state.log_history[-1]
    rates = closing["train_tokens_per_second"], closing["train_steps_per_second"]
    assert rates[0] / rates[1] == pytest.approx(120 / 6, rel=1e-3)
    assert trainer.train_metrics["num_input_tokens_seen"] == 120


def test_a_rate_alone_counts_and_stands_in_the_last_row_only(tmp_path):
    options = {"include_tokens_per_second": True, "eval_strategy": "epoch"}
    trainer = trained(tmp_path, Reader(), sentences(), given={"eval_dataset": sentences()}, **options)
    assert trainer.state.num_input_tokens_seen == 60
    assert ["num_input_tokens_seen" in row for row in trainer.state.log_history] == [False, False]
    assert ["train_tokens_per_second" in row for row in trainer.state.log_history] == [False, True]


def test_nothing_is_counted_or_told_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer_core.tally.TokenTally.__init__", None)
    trainer = trained(tmp_path, Reader(), sentences())
    assert trainer.state.num_input_tokens_seen == 0
    assert {name for row in trainer.state.log_history for name in row if "token" in name} == set()


def test_padding_is_counted_with_a_warning_where_no_mask_tells_it(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "trainer_core.tally"):
        trainer, _ = seen_by(tmp_path, sentences(has_mask=False), include_num_input_tokens_seen="non_padding")
    assert trainer.state.num_input_tokens_seen == 60
    assert caplog.messages == [
        "include_num_input_tokens_seen: batches have no attention_mask; all tokens are counted, padding too."
    ]


def test_the_main_input_is_what_the_model_calls_so(tmp_path):
    model = Classifier()
    trainer = trained(tmp_path, model, named_rows(10), include_num_input_tokens_seen="all")
    assert trainer.state.num_input_tokens_seen == 40
    model.main_input_name = "labels"
    trainer = trained(tmp_path, model, named_rows(10), include_num_input_tokens_seen="all")
    assert trainer.state.num_input_tokens_seen == 10


def test_the_first_of_a_tuple_is_the_main_input(tmp_path):
    trainer = trained(tmp_path, Classifier(), pairs(10), include_num_input_tokens_seen="non_padding")
    assert trainer.state.num_input_tokens_seen == 40


def test_a_main_input_without_elements_is_refused(tmp_path):
    model = Classifier()
    model.main_input_name = "words"
    batches = {
        "data_collator": lambda rows: {"words": ["a"], **{k: torch.stack([r[k] for r in rows]) for k in rows[0]}}
    }
    options = {"include_num_input_tokens_seen": "all", "remove_unused_columns": False}
    with pytest.raises(DataError) as caught:
        trained(tmp_path, model, named_rows(10), given=batches, **options)
    assert str(caught.value) == (
        "include_num_input_tokens_seen: the main input must be a tensor, got list. Set main_input_name of the model "
        "to the input that holds tokens, or turn the counting off."
    )


def test_counting_goes_on_in_a_resumed_run_and_its_rate_counts_its_own(tmp_path):
    pytest.importorskip("trainer_core_checkpointing")
    options = {
        "block_plugins": [name for name in BLOCKED if name != "checkpointing"],
        "include_num_input_tokens_seen": "non_padding",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    trained(tmp_path, Reader(), sentences(), **options)
    trainer = trainer_for(tmp_path, Reader(), sentences(), **options)
    metrics = trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2")).metrics
    assert trainer.state.num_input_tokens_seen == sum(LENGTHS)
    assert metrics["train_tokens_per_second"] / metrics["train_steps_per_second"] == pytest.approx(8, rel=1e-3)


def test_a_state_from_before_tokens_were_counted_begins_at_none(tmp_path):
    trainer = trainer_for(tmp_path, Reader(), sentences())
    counters = trainer.state.counters()
    del counters["num_input_tokens_seen"]
    trainer.state.restore(counters)
    assert trainer.state.num_input_tokens_seen == 0


def test_fractions_are_counted_with_a_warning(tmp_path, caplog):
    trainer = trainer_for(tmp_path, Classifier(), named_rows(4), include_num_input_tokens_seen="all")
    trainer.train()
    said = [record.getMessage() for record in caplog.records if record.name == "trainer_core.tally"]
    assert said == [
        "include_num_input_tokens_seen: the main input holds no token ids but fractions; its elements are counted."
    ]
