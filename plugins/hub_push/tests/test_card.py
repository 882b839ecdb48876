"""The model card: what it says, of which models, and that it replaces nobody's."""

from __future__ import annotations

import os
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from torch import nn

from trainer_core import Signal, Trainer, TrainingArguments
from trainer_core.testing import tiny_dataset, tiny_model
from trainer_core_hub_push.card import card_options, write_card
from trainer_core_hub_push.facts import Dataset, base_of, changed_settings, datasets_of, library_of, tasks_of
from trainer_core_hub_push.results import number, results_of


class Measure:
    """Metrics that depend on how often they were asked for."""

    def __init__(self, *accuracies):
        self.accuracies = list(accuracies)

    def __call__(self, prediction):
        return {"accuracy": self.accuracies.pop(0)}


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.step:
            trainer.request(Signal.STOP, by="stop_at", why="that is enough")


def made(output_dir, *, model=None, plugins=(), metrics=None, eval_dataset=None, train_dataset=None, **options):
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 4, "eval_strategy": "epoch"}
    return Trainer(
        model=model if model is not None else tiny_model(),
        args=TrainingArguments(output_dir, block_plugins=["console"], **(settings | options)),
        train_dataset=train_dataset if train_dataset is not None else tiny_dataset(),
        eval_dataset=eval_dataset if eval_dataset is not None else tiny_dataset(),
        compute_metrics=metrics or Measure(0.25, 0.75, 0.5, 0.5),
        plugins=plugins,
    )


def trained(output_dir, **options):
    trainer = made(output_dir, **options)
    trainer.train()
    return trainer


def parts(path):
    """Gives the header of a card, and its sections by title."""
    text = path.read_text(encoding="utf-8")
    head, body = re.fullmatch(r"---\n(.*?\n)---\n(.*)", text, re.DOTALL).groups()
    _, *sections = re.split(r"^## ", body, flags=re.MULTILINE)
    return yaml.safe_load(head), {title: rest.strip() for title, _, rest in (one.partition("\n") for one in sections)}


def pairs(section):
    return dict(line[2:].split(": ", 1) for line in section.splitlines() if line.startswith("- "))


# What it says


def test_a_card_of_a_plain_module_tells_the_run(tmp_path):
    trainer = trained(tmp_path / "first", learning_rate=0.01)
    path = write_card(trainer, tmp_path / "out")
    assert path == tmp_path / "out" / "README.md"
    head, sections = parts(path)
    assert head == {"library_name": "pytorch", "tags": ["trainer_core"], "metrics": ["accuracy"]}
    assert list(sections) == ["Results", "Training", "Settings", "Evaluations", "Versions"]
    assert "\n# first\n\nA TinyModel, trained with trainer_core.\n" in path.read_text()
    assert pairs(sections["Training"]) == {
        "outcome": "completed",
        "steps": "12 of 12",
        "epochs": "2",
        "samples": "48",
        "samples a step": "4",
        "processes": "1",
        "model": "TinyModel",
        "parameters": "123 (123 trained)",
        "optimizer": "AdamW",
        "learning rate schedule": "linear",
        "training loss": f"{trainer.train_metrics['train_loss']:.4f}",
    }
    assert pairs(sections["Settings"]) == {
        "num_train_epochs": "`2.0`",
        "learning_rate": "`0.01`",
        "per_device_train_batch_size": "`4`",
        "eval_strategy": "`epoch`",
    }
    assert list(pairs(sections["Versions"])) == ["python", "trainer_core", "torch", "accelerate"]


def test_a_bar_in_the_name_of_a_metric_breaks_no_table(tmp_path):
    trainer = trained(tmp_path / "first", metrics=lambda prediction: {"f1|macro\nmean": 0.5})
    _, sections = parts(write_card(trainer, tmp_path / "out"))
    head, rule, *rows = sections["Evaluations"].splitlines()
    assert head == r"| training loss | epoch | step | evaluation loss | f1\|macro mean |"
    assert rule == "| :---: | :---: | :---: | :---: | :---: |"
    assert [row.count(" | ") for row in rows] == [4, 4]


def test_evaluations_stand_in_a_table_with_the_training_loss_before_each(tmp_path):
    trainer = trained(tmp_path / "first")
    rows = {row["step"]: row for row in trainer.state.log_history if "eval_loss" in row}
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    _, sections = parts(write_card(trainer, tmp_path / "out"))
    assert sections["Evaluations"].splitlines() == [
        "| training loss | epoch | step | evaluation loss | accuracy |",
        "| :---: | :---: | :---: | :---: | :---: |",
        f"| {losses[0]:.4f} | 1 | 6 | {rows[6]['eval_loss']:.4f} | 0.2500 |",
        f"| {losses[2]:.4f} | 2 | 12 | {rows[12]['eval_loss']:.4f} | 0.7500 |",
    ]
    assert sections["Results"].splitlines() == [
        "Measured at step 12:",
        "",
        f"- loss: {rows[12]['eval_loss']:.4f}",
        "- accuracy: 0.7500",
    ]


def test_the_results_are_those_of_the_best_model_when_it_was_loaded(tmp_path):
    options = {"load_best_model_at_end": True, "save_strategy": "epoch", "metric_for_best_model": "accuracy"}
    trainer = trained(tmp_path / "first", metrics=Measure(0.75, 0.25, 0.6), greater_is_better=True, **options)
    results = results_of(trainer)
    assert (results.final["accuracy"], results.where) == (0.75, "at step 6, the best one, whose weights these are")
    trainer.evaluate()
    results = results_of(trainer)
    assert (results.final["accuracy"], results.where) == (0.6, "after training")
    assert [row.metrics["accuracy"] for row in results.rows] == [0.75, 0.25]


def test_several_datasets_share_a_line(tmp_path):
    metrics = Measure(0.1, 0.2, 0.3, 0.4)
    trainer = trained(tmp_path, eval_dataset={"a": tiny_dataset(), "b": tiny_dataset()}, metrics=metrics)
    results = results_of(trainer)
    assert results.columns == ["training loss", "epoch", "step", "a loss", "a accuracy", "b loss", "b accuracy"]
    assert results.scores == {"a_accuracy": 0.3, "b_accuracy": 0.4}


def test_a_run_without_evaluations_or_losses_has_no_empty_sections(tmp_path):
    trainer = trained(tmp_path / "x", eval_strategy="no", logging_steps=1000)
    head, sections = parts(write_card(trainer, tmp_path))
    assert list(sections) == ["Training", "Settings", "Versions"]
    assert head == {"library_name": "pytorch", "tags": ["trainer_core"]}
    late = trained(tmp_path / "y", logging_steps=1000)
    assert [results_of(late).cells(row)[0] for row in results_of(late).rows] == ["not logged", "not logged"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.98765, "0.9877"), (12345.678, "12345.6780"), (3, "3"), (0.00012345, "0.000123"), (0.0, "0.0000"),
     (float("nan"), "nan"), (float("inf"), "inf")],
)  # fmt: skip
def test_numbers_keep_what_they_tell(value, text):
    assert number(value) == text


def test_a_metric_that_is_not_finite_is_no_score(tmp_path):
    results = results_of(trained(tmp_path, metrics=Measure(float("nan"), float("nan"))))
    assert results.scores == {}
    assert str(results.final["accuracy"]) == "nan"


def test_a_run_that_was_stopped_says_by_whom(tmp_path):
    trainer = trained(tmp_path / "x", plugins=[StopAt(7)])
    _, sections = parts(write_card(trainer, tmp_path))
    training = pairs(sections["Training"])
    assert (training["outcome"], training["steps"]) == ("stopped by stop_at: that is enough", "7 of 12")


def test_a_card_before_training_says_that_nothing_was_trained(tmp_path):
    _, sections = parts(write_card(made(tmp_path / "x"), tmp_path))
    training = pairs(sections["Training"])
    assert (training["outcome"], training["steps"], "training loss" in training) == ("not finished", "0", False)


# Settings


def test_settings_of_plugins_are_told_and_secrets_and_places_are_not(tmp_path):
    token = "hf_AbCdEfGhIjKlMnOpQrStUvWx"
    args = TrainingArguments(
        tmp_path, hub_token="hf_quiet", save_steps=3, seed=7, optim_args=f"foo={token}",
        optim="sgd", hub_model_id="user/x",
    )  # fmt: skip
    assert changed_settings(args) == {
        "seed": "`7`", "optim": "`sgd`", "optim_args": "`foo=***`", "checkpointing.steps": "`3`",
    }  # fmt: skip
    assert "quiet" not in str(changed_settings(args)) + str(tmp_path)


def test_a_value_that_equals_the_default_is_not_told():
    assert changed_settings(TrainingArguments("x", seed=42, metric_for_best_model=None)) == {}


# Options


def test_options_fill_the_header(tmp_path):
    said = {
        "language": ["en", "fr"], "license": "mit", "tags": ["one", "two"], "model_name": "A fine > model -->",
        "finetuned_from": "user/base", "tasks": "text-classification", "dataset_tags": "stanfordnlp/imdb",
        "dataset": "IMDB", "dataset_args": "plain",
    }  # fmt: skip
    path = write_card(trained(tmp_path / "x"), tmp_path, said)
    head, _ = parts(path)
    assert head == {
        "language": ["en", "fr"],
        "license": "mit",
        "library_name": "pytorch",
        "tags": ["trainer_core", "one", "two"],
        "base_model": "user/base",
        "datasets": ["stanfordnlp/imdb"],
        "metrics": ["accuracy"],
        "pipeline_tag": "text-classification",
        "model-index": [
            {
                "name": "A fine > model -->",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": "IMDB", "type": "stanfordnlp/imdb", "config": "plain"},
                        "metrics": [{"type": "accuracy", "value": 0.75}],
                    }
                ],
            }
        ],
    }
    text = path.read_text()
    assert "\n# A fine > model -->\n" in text
    line = "[user/base](https://huggingface.co/user/base), fine-tuned further on IMDB with trainer_core."
    assert f"\nThe model {line}\n" in text
    assert ModelCard.load(path).data.license == "mit"


def test_what_was_said_once_stays(tmp_path):
    trainer = trained(tmp_path / "x")
    write_card(trainer, tmp_path, {"license": "mit", "tags": ["one"], "dataset": ["IMDB"]})
    first = (tmp_path / "README.md").read_text()
    assert write_card(trainer, tmp_path).read_text() == first
    head, _ = parts(write_card(trainer, tmp_path, {"license": "apache-2.0", "tags": "two"}))
    assert (head["license"], head["tags"]) == ("apache-2.0", ["trainer_core", "two", "one"])


def test_a_tag_that_somebody_added_stays(tmp_path):
    trainer = trained(tmp_path / "x")
    path = write_card(trainer, tmp_path)
    path.write_text(path.read_text().replace("- trainer_core\n", "- trainer_core\n- by-hand\n"))
    assert parts(write_card(trainer, tmp_path))[0]["tags"] == ["trainer_core", "by-hand"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"licence": "mit"}, "create_model_card: licence is no option. Did you mean 'license'?"),
        (
            {"xyz": "1"},
            "create_model_card: xyz is no option. It takes language, license, tags, model_name, finetuned_from, tasks, "
            "dataset_tags, dataset, dataset_args.",
        ),
        ({"tags": 3}, "create_model_card: tags must be text or a list of texts, got 3. Quote it."),
        ({"tags": ["a", 3]}, "create_model_card: tags must be text or a list of texts, got ['a', 3]. Quote it."),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(tmp_path, options, text):
    with pytest.raises(TypeError) as caught:
        write_card(made(tmp_path / "x"), tmp_path, options)
    assert str(caught.value) == text
    assert not (tmp_path / "README.md").exists()


def test_nothing_said_is_none():
    assert card_options({"license": None, "tags": []}) == card_options({})


# Whose card it is


def test_a_card_that_somebody_wrote_is_left_as_it_is(tmp_path, caplog):
    own = "---\nlicense: mit\n---\n\n# Mine\n"
    (tmp_path / "README.md").write_text(own)
    with caplog.at_level("INFO", logger="trainer_core.hub_push"):
        path = write_card(made(tmp_path / "x"), tmp_path, {"tags": ["a"]})
    assert path.read_text() == own
    assert caplog.messages == [
        f"{path}: was not written by trainer_core and is left as it is. Remove it to have one written."
    ]


def test_a_card_without_its_marker_line_is_somebodys(tmp_path):
    trainer = made(tmp_path / "x")
    path = write_card(trainer, tmp_path, {"license": "mit"})
    taken = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("<!--"))
    path.write_text(taken)
    assert write_card(trainer, tmp_path, {"license": "gpl"}).read_text() == taken


def test_an_empty_card_is_nobodys(tmp_path):
    (tmp_path / "README.md").write_text("\n")
    assert parts(write_card(made(tmp_path / "x"), tmp_path))[0]["tags"] == ["trainer_core"]


def test_a_broken_header_of_ours_is_made_anew(tmp_path):
    trainer = made(tmp_path / "x")
    path = write_card(trainer, tmp_path, {"license": "mit"})
    good = path.read_text()
    path.write_text(good.replace("tags:\n", "tags: [\n"))
    assert write_card(trainer, tmp_path).read_text() == good


def test_a_write_that_fails_leaves_the_card_before(tmp_path, monkeypatch):
    trainer = made(tmp_path / "x")
    before = write_card(trainer, tmp_path).read_text()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_card(trainer, tmp_path, {"license": "mit"})
    assert (tmp_path / "README.md").read_text() == before
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


# Which models


def test_a_model_of_transformers_is_known_by_its_class(tmp_path):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=20, dim=8, n_heads=2, n_layers=1, hidden_dim=8, max_position_embeddings=8)
    model = DistilBertForSequenceClassification(config)
    model.config._name_or_path = "user/base"
    trainer = made(tmp_path / "x", model=model)
    head, sections = parts(write_card(trainer, tmp_path))
    assert head == {
        "library_name": "transformers",
        "tags": ["trainer_core"],
        "base_model": "user/base",
        "pipeline_tag": "text-classification",
    }
    assert list(pairs(sections["Versions"])) == ["python", "trainer_core", "torch", "accelerate", "transformers"]
    assert (library_of(model), tasks_of(model)) == ("transformers", ["text-classification"])
    model.config._name_or_path = str(tmp_path)
    assert base_of(model) is None
    model.config._name_or_path = ""
    assert base_of(model) is None
    model.config._name_or_path = "gpt2"
    assert base_of(model) == "gpt2"


def test_an_adapter_names_what_it_adapts(tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import GPT2Config, GPT2LMHeadModel

    base = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8))
    base.config._name_or_path = "user/base"
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    head, sections = parts(write_card(made(tmp_path / "x", model=model), tmp_path))
    assert head == {
        "library_name": "peft",
        "tags": ["trainer_core"],
        "base_model": "user/base",
        "base_model_relation": "adapter",
        "pipeline_tag": "text-generation",
    }
    assert pairs(sections["Training"])["model"] == "GPT2LMHeadModel"
    assert {"peft", "transformers"} <= set(pairs(sections["Versions"]))


def test_a_model_of_ones_own_that_saves_itself_is_of_pytorch():
    class Own(nn.Module):
        def save_pretrained(self, folder):
            torch.save({}, folder)

    Own.__module__ = "__main__"
    assert library_of(Own()) == "pytorch"
    Own.__module__ = "sentence_transformers.models"
    assert library_of(Own()) == "sentence-transformers"


# Which data


def test_data_from_the_hub_names_itself(tmp_path):
    from datasets import Dataset as Table
    from datasets import DatasetInfo, NamedSplit

    def table(builder):
        info = DatasetInfo(builder_name=builder, config_name="plain")
        return Table.from_dict({"a": [1]}, info=info, split=NamedSplit("test"))

    named = made(tmp_path / "x", eval_dataset=table("imdb"))
    assert datasets_of(named) == [Dataset("imdb", "imdb", "plain", "test")]
    assert "datasets" in pairs(parts(write_card(named, tmp_path))[1]["Versions"])
    assert datasets_of(made(tmp_path / "x", eval_dataset={"a": table("imdb")}))[0].name == "imdb"
    for builder in ("csv", "json", "generator", "imagefolder", None):
        assert datasets_of(made(tmp_path / "x", eval_dataset=table(builder))) == []
