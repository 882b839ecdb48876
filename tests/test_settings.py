from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from trainer_core.settings.section import Given, Interval, Remedy, Section, StepCount, problem
from trainer_core.settings.validation import fill


class Patience(Section):
    """Stops early."""

    patience: Annotated[int, Field(ge=1), Remedy("Use 1 to stop at the first evaluation.")] = 1
    """Evaluations without improvement."""
    mode: Literal["min", "max"] = "min"
    names: list[str] = Field(default_factory=list)
    factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    every: Interval = 1
    even: int = 2
    either: int | str = 1
    pair: tuple[int, int] = (0, 0)

    @field_validator("even")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even. Use 2")
        return value


def mistakes(**values):
    given = {name: Given(value, "train.yaml", f"early_stopping.{name}") for name, value in values.items()}
    return fill(Patience.__new__(Patience), given, "early_stopping")


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("patience", 0, "must be at least 1, got 0 (from train.yaml). Use 1 to stop at the first evaluation."),
        ("patience", "8", "must be a whole number, got '8' (from train.yaml). Use 1 to stop at the first evaluation."),
        ("even", "8", "must be a whole number, got '8' (from train.yaml). Write 8 without quotes."),
        ("even", True, "must be a whole number, got True (from train.yaml). Give a whole number, for example 2."),
        ("even", 3, "must be even, got 3 (from train.yaml). Use 2."),
        ("mode", "mini", "must be one of 'min', 'max', got 'mini' (from train.yaml). Did you mean 'min'?"),
        ("mode", "zzz", "must be one of 'min', 'max', got 'zzz' (from train.yaml). Use one of these."),
        ("names", "a", "must be a list, got 'a' (from train.yaml). Put it in square brackets."),
        ("factor", 1, "must be less than 1, got 1 (from train.yaml). Use a value below 1."),
        ("factor", float("nan"), "must be a finite number, got nan (from train.yaml). Give a finite number."),
        (
            "either",
            1.5,
            "must be a whole number or text, got 1.5 (from train.yaml). Give a whole number, for example 1.",
        ),
        ("every", 1.5, "must be a whole number of steps or a share below 1, got 1.5 (from train.yaml). Round it."),
    ],
)
def test_a_wrong_value_is_told_with_place_value_source_and_remedy(field, value, text):
    assert mistakes(**{field: value}) == [f"early_stopping.{field}: {text}"]


def test_a_wrong_item_is_told_with_its_position():
    assert mistakes(names=["a", 1]) == [
        "early_stopping.names[1]: must be text, got 1 (from train.yaml). Put it in quotes."
    ]


def test_an_unknown_field_is_a_mistake():
    assert mistakes(x=1) == ["early_stopping.x: is not an option, got 1 (from train.yaml). Leave it out."]


def test_a_field_that_nobody_gave_is_told_as_needed():
    class Needy(Section):
        alpha: float

    assert fill(Needy.__new__(Needy), {}, "noise") == ["noise.alpha: is needed, and nothing was given. Set it."]


def test_what_json_writes_in_one_form_is_taken_in_each_of_python():
    section = Patience.__new__(Patience)
    assert fill(section, {"names": Given(("a",)), "pair": Given([1, 2])}, "early_stopping") == []
    assert (section.names, section.pair) == (["a"], (1, 2))


def test_secrets_are_not_shown():
    assert problem("hub_token", "is wrong", Given("abc")) == "hub_token: is wrong, got '***'."


def test_a_section_is_frozen_and_strict():
    with pytest.raises(ValidationError, match="frozen"):
        Patience().patience = 3
    with pytest.raises(ValidationError, match="valid integer"):
        Patience(patience="3")


def test_a_section_contradicts_nothing_by_default():
    assert list(Patience().contradictions(None)) == []


def test_a_mistake_inside_a_mapping_names_the_way_to_it():
    class Nested(Section):
        sizes: dict[str, int] = Field(default_factory=dict)

    given = {"sizes": Given({"a": "x"}, "train.yaml", "sizes")}
    assert fill(Nested.__new__(Nested), given, "nested") == [
        "sizes.a: must be a whole number, got 'x' (from train.yaml). Give a whole number."
    ]


def test_a_validator_of_the_whole_section_speaks_for_it():
    class Pair(Section):
        low: int = 0
        high: int = 0

        @model_validator(mode="after")
        def _is_ordered(self):
            if self.low > self.high:
                raise ValueError("low is above high. Swap them.")
            return self

    assert fill(Pair.__new__(Pair), {"low": Given(1)}, "pair") == ["pair: low is above high. Swap them."]


def test_a_mistake_that_has_no_words_of_ours_keeps_pydantic_s():
    class Odd(Section):
        many: Annotated[list[int], Field(max_length=1)] = Field(default_factory=list)

    told = fill(Odd.__new__(Odd), {"many": Given([1, 2], "train.yaml", "many")}, "odd")
    assert told == [
        "many: List should have at most 1 item after validation, not 2, got [1, 2] (from train.yaml). Change it."
    ]


def test_intervals_are_whole_where_they_count_steps():
    class Often(Section):
        every: Interval = 1
        first: StepCount = 0

    often = Often(every=3.0, first=0.5)
    assert (often.every, type(often.every), often.first) == (3, int, 0.5)
