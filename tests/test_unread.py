import logging

import pytest

from trainer_core import PluginError, TrainingArguments
from trainer_core.settings.unread import unread_options


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"eval_steps": 7}, "eval_strategy='no'"),
        ({"eval_steps": 7, "eval_strategy": "epoch"}, "eval_strategy='epoch'"),
        ({"eval_delay": 2.0}, "eval_strategy='no'"),
        ({"greater_is_better": True}, "eval_strategy='no'"),
        ({"length_column_name": "long"}, "train_sampling_strategy='random'"),
        ({"include_for_metrics": ["loss"], "prediction_loss_only": True}, "prediction_loss_only=True"),
        ({"batch_eval_metrics": True, "prediction_loss_only": True}, "prediction_loss_only=True"),
        ({"eval_accumulation_steps": 3, "prediction_loss_only": True}, "prediction_loss_only=True"),
        ({"logging_steps": 3, "logging_strategy": "epoch", "block_plugins": []}, "logging_strategy='epoch'"),
        ({"logging_first_step": True, "logging_strategy": "no", "block_plugins": []}, "logging_strategy='no'"),
    ],
)
def test_an_option_that_nothing_reads_is_said_when_a_run_begins(make_trainer, caplog, options, other):
    name, value = next(iter(options.items()))
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(max_steps=1, **options)
        trainer.train()
    told = f"{name}: has no effect with {other}, got {value!r} (from keyword). Leave out one of the two."
    assert told in caplog.messages
    assert ("no effect", told) in trainer.plan().rows()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eval_steps": 7, "eval_strategy": "steps"},
        {"eval_delay": 2, "eval_strategy": "epoch"},
        {"greater_is_better": True, "eval_strategy": "epoch"},
        {"greater_is_better": True, "eval_on_start": True},
        {"greater_is_better": True, "metric_for_best_model": "loss", "eval_strategy": "epoch"},
        {"length_column_name": "long", "train_sampling_strategy": "group_by_length"},
        {"logging_steps": 3, "logging_strategy": "epoch", "eval_strategy": "steps", "block_plugins": []},
    ],
)
def test_an_option_that_is_read_or_was_not_given_is_not_said(make_args, options):
    assert unread_options(make_args(**options)) == []


def test_a_section_that_names_no_option_is_refused(make_args, monkeypatch):
    args = make_args(block_plugins=[])
    monkeypatch.setattr(type(args.logging), "unread", lambda self, args: [("logging_step", "x=1")])
    with pytest.raises(PluginError, match=r"unread: a section names what is no option, got 'logging_step'\. Give the"):
        unread_options(args)


def test_a_value_that_follows_from_another_was_not_given(tmp_path):
    args = TrainingArguments(tmp_path, eval_strategy="steps", logging_steps=3)
    assert args.sources["eval_steps"] == "follows from logging_steps"
