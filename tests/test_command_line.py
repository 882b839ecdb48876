"""How a line is split into options; what the options mean is told in the tests of the sources."""

from dataclasses import make_dataclass

import pytest

from trainer_core import ArgumentParser, SettingsError, TrainingArguments


def parsed(fields, *line):
    """Gives what a line says to a class with these fields, all of them true at first."""
    kind = make_dataclass("Own", [(name, annotation, default) for name, annotation, default in fields])
    return vars(ArgumentParser((kind, TrainingArguments)).parse(line)[0])


def problems(*line):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments.from_command_line(line)
    return caught.value.problems


def test_a_flag_with_one_hyphen_is_told_and_not_passed_over():
    assert problems("-x", "3", "--seed", "4") == [
        "x: is not an option, got '3' (from command line). Look at `--help` for all options."
    ]


@pytest.mark.parametrize("word", ["-", "--", "-5", "word"])
def test_a_word_without_a_flag_is_told(word):
    assert problems("--seed=4", word) == [f"command line: belongs to no option, got {word!r}. Write --option VALUE."]


def test_a_negative_number_is_a_value_of_an_unknown_flag():
    assert problems("--sed", "-1e-3") == [
        "sed: is not an option, got '-1e-3' (from command line). Did you mean 'seed'?"
    ]


def test_a_form_that_says_false_gives_way_to_an_option_of_that_name():
    fields = [("drop", bool, True), ("no_drop", bool, False)]
    assert parsed(fields, "--no_drop") == {"drop": True, "no_drop": True}
    assert parsed(fields, "--no-drop") == {"drop": True, "no_drop": True}
    assert parsed(fields, "--drop", "false", "--no-no-drop") == {"drop": False, "no_drop": False}


def test_a_script_may_have_an_option_called_config():
    assert parsed([("config", str, "a")], "--config", "b") == {"config": "b"}


def test_words_that_are_left_are_given_back_as_they_were():
    parser = ArgumentParser(TrainingArguments)
    line = ["stray", "--depth", "-1", "--seed", "3", "-v"]
    args, rest = parser.parse_args_into_dataclasses(line, return_remaining_strings=True)
    assert (args.seed, rest) == (3, ["stray", "--depth", "-1", "-v"])
