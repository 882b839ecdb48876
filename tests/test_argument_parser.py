"""A script's own options beside those of TrainingArguments: on one line, in one file, with one help."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import pytest
from pydantic import BaseModel, Field, model_validator

from trainer_core import ArgumentParser, HfArgumentParser, SettingsError, TrainingArguments


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class ModelArguments:
    """Which model is trained."""

    name: str = field(metadata={"help": "Folder or name of the model."})
    colour: Colour = Colour.RED
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    is_cased: bool = True
    layers: int | None = None
    kind: Literal["small", "large"] = "small"
    options: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.name == "bad":
            raise ValueError("name: must be a good one, got 'bad'. Choose another.")


class DataArguments(BaseModel):
    """What it is trained on."""

    rows: int = Field(10, ge=1, description="Rows to train on.")
    share: float = 1.0

    @model_validator(mode="after")
    def _enough(self):
        if self.rows * self.share < 1:
            raise ValueError("rows times share must be at least 1")
        return self


CLASSES = (ModelArguments, TrainingArguments, DataArguments)


@pytest.fixture(scope="module")
def parser():
    return ArgumentParser(CLASSES)


def mistakes(parser, *line, **options):
    with pytest.raises(SettingsError) as caught:
        parser.parse(line, **options)
    return caught.value.problems


def test_one_line_gives_an_object_of_each_class_in_their_order(parser):
    line = ["--name", "bert", "--learning_rate", "1e-3", "--rows", "5", "--logging_steps", "7", "--share=0.5"]
    model, args, data = parser.parse(line)
    assert model == ModelArguments("bert")
    assert (type(args), args.learning_rate, args.logging_steps) == (TrainingArguments, 1e-3, 7)
    assert args.sources["learning_rate"] == "command line"
    assert args == TrainingArguments(learning_rate=1e-3, logging_steps=7)
    assert data == DataArguments(rows=5, share=0.5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--colour blue", {"colour": Colour.BLUE}),
        ("--sizes 3 4", {"sizes": [3, 4]}),
        ("--sizes 3", {"sizes": [3]}),
        ("--is_cased false", {"is_cased": False}),
        ("--no_is_cased", {"is_cased": False}),
        ("--no-is-cased", {"is_cased": False}),
        ("--is-cased", {"is_cased": True}),
        ("--layers 3", {"layers": 3}),
        ("--layers none", {"layers": None}),
        ("--kind large", {"kind": "large"}),
        ('--options {"a":1.5}', {"options": {"a": 1.5}}),
    ],
)
def test_text_becomes_what_the_field_takes(parser, words, expected):
    model, _, _ = parser.parse(["--name", "bert", *words.split()])
    assert model == ModelArguments("bert", **expected)


def test_all_mistakes_of_all_classes_are_told_at_once(parser):
    line = "--nam x --rows 0 --learning_rate -1 --colour green"
    assert mistakes(parser, *line.split()) == [
        "nam: is not an option, got 'x' (from command line). Did you mean 'name'?",
        "name: is needed, and nothing was given. Set it.",
        "colour: must be one of 'red', 'blue', got 'green' (from command line). Did you mean 'red'?",
        "rows: must be at least 1, got 0 (from command line). Use 1 or more.",
        "learning_rate: must be at least 0, got -1 (from command line). Use 0 or more.",
    ]


def test_what_a_class_itself_finds_wrong_is_told_with_its_name(parser):
    assert mistakes(parser, "--name", "bad", "--share", "0.01") == [
        "ModelArguments: name: must be a good one, got 'bad'. Choose another.",
        "DataArguments: rows times share must be at least 1. Change it or leave it out.",
    ]


def test_one_file_holds_the_options_of_all_and_the_line_lies_over_it(parser, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("name: bert\nlearning_rate: 1e-3\nDataArguments:\n  rows: 7\nlogging:\n  steps: 3\n")
    model, args, data = parser.parse(["--rows", "8"], file=path)
    assert (model.name, args.learning_rate, args.logging_steps, data.rows) == ("bert", 1e-3, 3, 8)
    assert args.sources["learning_rate"] == str(path)
    assert parser.parse(["--config", str(path)])[2].rows == 7


def test_defaults_of_the_script_lie_below_everything(parser):
    model, args, _ = parser.parse(["--seed", "3"], name="bert", seed=1, learning_rate=0.5)
    assert (model.name, args.seed, args.learning_rate) == ("bert", 3, 0.5)


def test_help_shows_the_groups_of_all(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("ModelArguments: Which model is trained.", "DataArguments: What it is trained on.", "plugin logging"):
        assert text in shown
    for text in ("--name", "Folder or name of the model.", "Rows to train on.", "--learning_rate"):
        assert text in shown


def test_a_name_in_two_classes_is_refused_with_both():
    @dataclass
    class Mine:
        seed: int = 0
        rows: int = 0
        num_gpus: int = 0

    with pytest.raises(SettingsError) as caught:
        ArgumentParser((Mine, DataArguments, TrainingArguments))
    assert caught.value.problems == [
        "seed: is an option of TrainingArguments and of Mine. Rename one of them.",
        "rows: is an option of Mine and of DataArguments. Rename one of them.",
    ]


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ((ModelArguments,), "ArgumentParser: needs TrainingArguments, or one subclass of it, among its classes."),
        ((int, TrainingArguments), "ArgumentParser: int is no dataclass and no pydantic model. Decorate it."),
    ],
)
def test_classes_that_cannot_be_read_are_refused(classes, problem):
    with pytest.raises(SettingsError) as caught:
        ArgumentParser(classes)
    assert caught.value.problems[0].startswith(problem)


def test_a_field_of_a_type_without_options_is_refused():
    @dataclass
    class Odd:
        what: object.__class__.__subclasshook__.__class__ = None  # a type that no text can stand for

    with pytest.raises(SettingsError, match="ArgumentParser: Odd has a field of a type without options"):
        ArgumentParser((Odd, TrainingArguments))


def test_a_subclass_of_the_arguments_is_given_back(tmp_path):
    class MyArguments(TrainingArguments):
        teacher: str = ""

    (args,) = ArgumentParser(MyArguments).parse(["--teacher", "big", "--output_dir", str(tmp_path)])
    assert (type(args), args.teacher, args.output_dir) == (MyArguments, "big", str(tmp_path))


# The original's methods --------------------------------------------------------------------------------------------


def test_the_originals_name_is_the_same_class():
    assert HfArgumentParser is ArgumentParser


def test_a_line_in_the_originals_way(parser):
    model, args, data = parser.parse_args_into_dataclasses(["--name", "bert", "--max_steps", "3"])
    assert (model.name, args.max_steps, data.rows) == ("bert", 3, 10)


def test_words_that_no_option_takes_are_refused_or_given_back(parser):
    line = ["--name", "bert", "--what", "1"]
    with pytest.raises(SettingsError, match="what: is not an option"):
        parser.parse_args_into_dataclasses(line)
    assert parser.parse_args_into_dataclasses(line, return_remaining_strings=True)[-1] == ["--what", "1"]


def test_files_of_arguments_lie_below_the_line(parser, tmp_path, monkeypatch):
    (tmp_path / "more.args").write_text("--name bert --seed 3  # a remark\n--max_steps 5")
    (tmp_path / "script.args").write_text("--name gpt")
    named = parser.parse_args_into_dataclasses(["--seed", "4"], args_filename=tmp_path / "more.args")
    assert (named[0].name, named[1].seed, named[1].max_steps) == ("bert", 4, 5)
    flagged = parser.parse_args_into_dataclasses(["--from", str(tmp_path / "more.args")], args_file_flag="--from")
    assert flagged[1].seed == 3
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    assert parser.parse_args_into_dataclasses([])[0].name == "gpt"
    with pytest.raises(SettingsError, match="name: is needed"):
        parser.parse_args_into_dataclasses([], look_for_args_file=False)


def test_mappings_and_files_in_the_originals_way(parser, tmp_path):
    values = {"name": "bert", "seed": 3, "logging_steps": 5, "rows": 4}
    (tmp_path / "all.json").write_text(json.dumps(values))
    (tmp_path / "all.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    for model, args, data in (
        parser.parse_dict(values),
        parser.parse_json_file(tmp_path / "all.json"),
        parser.parse_yaml_file(tmp_path / "all.yaml"),
    ):
        assert (model.name, args.seed, args.logging_steps, data.rows) == ("bert", 3, 5, 4)


def test_unknown_keys_are_refused_unless_they_are_allowed(parser):
    with pytest.raises(SettingsError, match=r"sed: is not an option, got 3 \(from dict\). Did you mean 'seed'"):
        parser.parse_dict({"name": "bert", "sed": 3})
    assert parser.parse_dict({"name": "bert", "unheard_of": 3}, allow_extra_keys=True)[0].name == "bert"


SCRIPT = """
from dataclasses import dataclass
from pydantic import BaseModel
from trainer_core import ArgumentParser, Trainer, TrainingArguments
import torch

@dataclass
class Model:
    width: int
    bias: bool = True

class Data(BaseModel):
    rows: int = 8

class Net(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.layer = torch.nn.Linear(model.width, 1, bias=model.bias)
    def forward(self, x):
        return {"loss": self.layer(x).square().mean()}

model, args, data = ArgumentParser((Model, TrainingArguments, Data)).parse()
rows = [{"x": torch.ones(model.width)}] * data.rows
trainer = Trainer(Net(model), args, train_dataset=rows)
trainer.train()
print("steps", trainer.state.global_step, "parameters", sum(p.numel() for p in trainer.model.parameters()))
"""


def test_a_script_with_three_classes_a_file_and_a_line(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "train.yaml").write_text("width: 3\nrows: 12\noutput_dir: out\nper_device_train_batch_size: 4\n")
    line = ["--config", "train.yaml", "--num_train_epochs", "1", "--no-bias", "--rows", "20", "--log_level", "error"]
    done = subprocess.run(
        [sys.executable, "script.py", *line], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "steps 5 parameters 3" in done.stdout
