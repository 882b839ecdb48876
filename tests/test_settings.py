from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator

from trainer_core.errors import SettingsError
from trainer_core.settings import Cadence, Given, Interval, Remedy, Section, StepCount, problem
from trainer_core.validation import fill


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
        ("either", 1.5, "must be a whole number or text, got 1.5 (from train.yaml). Give a whole number, for example 1."),
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


def test_a_cadence_of_steps_recurs_with_them():
    assert [step for step in range(8) if Cadence("steps", 3).due(step)] == [3, 6]


@pytest.mark.parametrize("strategy", ["no", "epoch", "best"])
def test_other_cadences_have_no_interval(strategy):
    assert (Cadence(strategy, 3).resolve(9), Cadence(strategy).due(3)) == (None, False)


@pytest.mark.parametrize(("share", "max_steps", "interval"), [(0.1, 70, 7), (0.3, 10, 3), (0.25, 10, 3), (0.001, 5, 1)])
def test_a_share_of_all_steps_is_rounded_up(share, max_steps, interval):
    assert Cadence("steps", share).resolve(max_steps) == interval


@given(st.floats(0.001, 0.999), st.integers(1, 10**6))
def test_a_share_gives_an_interval_within_the_run(share, max_steps):
    interval = Cadence("steps", share).resolve(max_steps)
    assert 1 <= interval <= max_steps
    assert interval - 1 <= max_steps * share <= interval + 1e-6


@pytest.mark.parametrize("every", [None, 0, -1, float("inf")])
def test_a_cadence_without_interval_is_refused(every):
    with pytest.raises(SettingsError, match="must be above 0 with strategy 'steps'"):
        Cadence("steps", every)


def test_a_share_of_unknown_length_is_refused():
    with pytest.raises(SettingsError, match="share of all steps, which are unknown"):
        Cadence("steps", 0.5).resolve(None)


def test_intervals_are_whole_where_they_count_steps():
    class Often(Section):
        every: Interval = 1
        first: StepCount = 0

    often = Often(every=3.0, first=0.5)
    assert (often.every, type(often.every), often.first) == (3, int, 0.5)
