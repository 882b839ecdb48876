"""Fields of a script's own classes: which types they may have, and how their values are read and checked."""

from dataclasses import dataclass, field, make_dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, List, Literal, Optional, Set, Tuple, Union  # noqa: UP035  # scripts write them

import pydantic.dataclasses
import pytest
import torch
from pydantic import AliasChoices, BaseModel, Field, field_validator

from trainer_core import ArgumentParser, SettingsError, TrainingArguments


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Inner:
    depth: int = 0


@dataclass
class Many:
    text: str = "a"
    size: int = None
    colours: List[Colour] = field(default_factory=list)  # noqa: UP006
    colour: Optional[Colour] = None  # noqa: UP045
    level: Level = Level.LOW
    kind: Literal[1, "a"] = 1
    path: Path = Path("a")
    pair: Tuple[int, int] = (1, 2)  # noqa: UP006
    names: Set[str] = field(default_factory=set)  # noqa: UP006
    token_or_flag: Union[bool, str] = False  # noqa: UP007
    numbers: list[float] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    perhaps: bool | None = None
    model_name_or_path: str = field(default=None, metadata={"help": "100% of a name."})
    bounded: Annotated[int, Field(ge=3)] = 4
    later: "int" = 3
    made: int = field(default=0, init=False)


@pytest.fixture(scope="module")
def parser():
    return ArgumentParser((Many, TrainingArguments))


def parser_of(*classes):
    return ArgumentParser((*classes, TrainingArguments))


def problems(make):
    with pytest.raises(SettingsError) as caught:
        make()
    return caught.value.problems


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--text", '"quoted"'], {"text": '"quoted"'}),
        (["--text", "5"], {"text": "5"}),
        (["--text", "none"], {"text": "none"}),
        (["--size", "3"], {"size": 3}),
        (["--size", "none"], {"size": None}),
        (["--colours", "red", "blue"], {"colours": [Colour.RED, Colour.BLUE]}),
        (["--colour", "blue"], {"colour": Colour.BLUE}),
        (["--colour", "null"], {"colour": None}),
        (["--level", "2"], {"level": Level.HIGH}),
        (["--kind", "a"], {"kind": "a"}),
        (["--kind", "1"], {"kind": 1}),
        (["--path", "b/c"], {"path": Path("b/c")}),
        (["--pair", "3", "4"], {"pair": (3, 4)}),
        (["--names", "a", "b"], {"names": {"a", "b"}}),
        (["--token_or_flag"], {"token_or_flag": True}),
        (["--token-or-flag", "x"], {"token_or_flag": "x"}),
        (["--numbers", "-1", "-2.5", "3"], {"numbers": [-1.0, -2.5, 3.0]}),
        (["--numbers", "-1e-3"], {"numbers": [-1e-3]}),
        (["--inner", '{"depth": 3}'], {"inner": Inner(3)}),
        (["--perhaps"], {"perhaps": True}),
        (["--no-perhaps"], {"perhaps": False}),
        (["--model-name-or-path", "x"], {"model_name_or_path": "x"}),
        (["--later", "5"], {"later": 5}),
    ],
)
def test_a_field_of_a_dataclass_is_read_from_a_line(parser, words, expected):
    assert parser.parse(words)[0] == Many(**expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("size: null", {"size": None}),
        ("colours: [red]", {"colours": [Colour.RED]}),
        ("level: 2", {"level": Level.HIGH}),
        ("path: b", {"path": Path("b")}),
        ("pair: [3, 4]", {"pair": (3, 4)}),
        ("names: [a]", {"names": {"a"}}),
        ("numbers: [1e-3, 2]", {"numbers": [1e-3, 2.0]}),
        ("inner: {depth: 3}", {"inner": Inner(3)}),
        ("perhaps: 'False'", {"perhaps": False}),
        ("token_or_flag: 'true'", {"token_or_flag": "true"}),
    ],
)
def test_a_field_of_a_dataclass_is_read_from_a_file(parser, tmp_path, text, expected):
    (tmp_path / "settings").write_text(text)
    assert parser.parse_yaml_file(tmp_path / "settings")[0] == Many(**expected)


def test_mistakes_name_the_option_the_value_the_source_and_what_to_do(parser, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("size: '3'\ntext: 5\ncolours: [rad]")
    assert problems(lambda: parser.parse(["--level", "5", "--bounded", "1", "--numbers", "x", "y"], file=path)) == [
        f"text: must be text, got 5 (from {path}). Put it in quotes.",
        f"size: must be a whole number, got '3' (from {path}). Write 3 without quotes.",
        f"colours[0]: must be one of 'red', 'blue', got 'rad' (from {path}). Did you mean 'red'?",
        "level: must be one of 1, 2, got '5' (from command line). Use one of these.",
        "numbers[0]: must be a number, got 'x' (from command line). Give a number.",
        "numbers[1]: must be a number, got 'y' (from command line). Give a number.",
        "bounded: must be at least 3, got 1 (from command line). Use 3 or more.",
    ]


def test_a_field_that_the_constructor_does_not_take_is_no_option(parser):
    assert problems(lambda: parser.parse(["--made", "1"]))[0].startswith("made: is not an option, got '1'")


def test_help_may_hold_a_percent_sign_and_names_choices_by_their_values(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse(["-h"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "100% of a name." in shown
    assert "Many: Options of the script." in shown
    assert "--level {1,2} (default: 1)" in shown
    assert "--colour {{red,blue},null} (default: null)" in shown


def test_a_class_makes_its_own_defaults_and_knows_what_was_given():
    class Data(BaseModel):
        rows: int = 1
        names: list[str] = Field(default_factory=list)

    made = []

    @dataclass
    class Counting:
        numbers: list[int] = field(default_factory=lambda: made.append(1) or [7])

    data, counting, _ = parser_of(Data, Counting).parse(["--rows", "2"])
    assert (data.model_fields_set, counting.numbers) == ({"rows"}, [7])


def test_an_alias_is_the_name_of_the_option():
    class Data(BaseModel):
        lines: int = Field(3, alias="rows")

    assert parser_of(Data).parse(["--rows", "4"])[0].lines == 4
    assert parser_of(Data).parse_dict({"rows": 5})[0].lines == 5


def test_a_dataclass_of_pydantic_is_read_like_a_model():
    @pydantic.dataclasses.dataclass
    class Data:
        rows: int = Field(3, ge=1)
        names: list[str] = Field(default_factory=list)
        made: int = Field(0, init=False)

    parser = parser_of(Data)
    assert parser.parse(["--rows", "4"])[0] == Data(rows=4)
    assert problems(lambda: parser.parse(["--rows", "0"])) == [
        "rows: must be at least 1, got 0 (from command line). Use 1 or more."
    ]


def test_what_a_validator_of_one_field_says_is_told_with_value_and_source():
    class Data(BaseModel):
        rows: int = 2

        @field_validator("rows")
        @classmethod
        def _check(cls, rows):
            if rows == 7:
                raise ValueError("must not be seven. Use 8")
            return rows

    assert problems(lambda: parser_of(Data).parse(["--rows", "7"])) == [
        "rows: must not be seven, got 7 (from command line). Use 8."
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such task. Use qa"), "Checked: no such task. Use qa."),
        (AssertionError("no such task!"), "Checked: no such task!"),
        (AssertionError(), "Checked: says no more than AssertionError."),
    ],
)
def test_what_a_class_says_after_it_is_made_is_told_with_its_name(error, told):
    @dataclass
    class Checked:
        task: str = "a"

        def __post_init__(self):
            if self.task == "b":
                raise error

    assert problems(lambda: parser_of(Checked).parse(["--task", "b"])) == [told]


def test_an_error_of_another_kind_is_the_users_own():
    @dataclass
    class Broken:
        task: str = "a"

        def __post_init__(self):
            raise KeyError("a defect")

    with pytest.raises(KeyError, match="a defect"):
        parser_of(Broken).parse([])


class Twice(BaseModel):
    lines: int = Field(3, validation_alias=AliasChoices("a", "b"))


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ((Inner, Inner), ["ArgumentParser: has two classes of the name Inner. Pass each once, and rename one of two."]),
        (("Inner",), ["ArgumentParser: 'Inner' is no dataclass and no pydantic model. Decorate it."]),
        (
            (make_dataclass("Own", [("width", "Missing", None)]),),
            ["ArgumentParser: Own has annotations that cannot be read (name 'Missing' is not defined). Import them."],
        ),
        (
            (make_dataclass("Own", [("width", torch.dtype, None)]),),
            [
                "ArgumentParser: Own has a field of a type without options (Unable to generate pydantic-core schema "
                "for <class 'torch.dtype'>). Change the type."
            ],
        ),
        (
            (Twice,),
            [
                "ArgumentParser: Twice.lines needs an alias that is a name, got "
                "AliasChoices(choices=['a', 'b']). Change it."
            ],
        ),
        (
            (make_dataclass("Own", [("help", str, ""), ("device", str, ""), ("logging", str, "")]),),
            [
                "help: is an option of the line itself and of Own. Rename one of them.",
                "device: is an option of TrainingArguments and of Own. Rename one of them.",
                "logging: is an option of TrainingArguments and of Own. Rename one of them.",
            ],
        ),
    ],
)
def test_classes_that_make_no_options_are_refused(classes, told):
    assert problems(lambda: parser_of(*classes)) == told
