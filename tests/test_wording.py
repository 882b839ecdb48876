"""Numbers, times and rows in words."""

import math

import pytest

from trainer_core.console import wording
from trainer_core.console.wording import Part, kind_of, parts_of


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.12345, "0.1235"), (0.5, "0.5000"), (0.0004, "4.000e-04"), (0.002, "0.002000"), (-1.5, "-1.500"),
     (123.456, "123.5"), (1234.5, "1,234"), (1.0e9, "1.000e+09"), (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_have_four_digits(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.9, "0:09"), (754, "12:34"), (3723, "1:02:03"), (183840, "2 d 03:04")]
)
def test_times_are_as_on_a_clock(seconds, text):
    assert wording.clock(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.004, "0.00 s"), (0.31, "0.31 s"), (4.24, "4.2 s"), (31.4, "31 s"), (754, "12:34")]
)
def test_durations_have_a_unit(seconds, text):
    assert wording.in_seconds(seconds) == text


@pytest.mark.parametrize(("part", "text"), [(0, "0%"), (0.2, "<1%"), (1, "1%"), (99.6, "100%")])
def test_shares_are_in_per_cent(part, text):
    assert wording.share(part, 100) == text
    assert wording.share(part, 0) == "0%"


@pytest.mark.parametrize(
    ("names", "kind"),
    [(["loss", "learning_rate"], "train"), (["eval_loss", "eval_runtime"], "eval"), (["my_f1", "my_runtime"], "eval"),
     (["train_runtime", "train_loss"], "end"), (["whatever"], "log"), ([], "log")],
)  # fmt: skip
def test_a_row_is_known_by_its_names(names, kind):
    assert kind_of(dict.fromkeys(names, 1.0)) == kind


def test_a_row_of_training_shows_short_names():
    row = {"loss": 0.5, "grad_norm": 1.25, "learning_rate": 1e-4, "epoch": 1.0, "step": 10}
    assert parts_of(row) == [Part("loss", "0.5000"), Part("grad norm", "1.250"), Part("lr", "1.00e-04")]


def test_a_row_of_an_evaluation_shows_no_prefix_and_no_rates():
    metrics = {"loss": 0.5, "rows": 2000, "runtime": 0.31, "samples_per_second": 9.0, "steps_per_second": 1.0}
    row = {f"eval_mnli_{name}": value for name, value in metrics.items()} | {"epoch": 1.0, "step": 10}
    assert parts_of(row) == [Part("loss", "0.5000"), Part("rows", "2,000"), Part("in", "0.31 s")]


def test_text_of_others_is_cut_and_has_no_control_characters():
    (part,) = parts_of({"note": "\x1b[31mred\r\n" + "x" * 100})
    assert part.text == " [31mred  " + "x" * 49 + "…"


def test_what_an_encoding_lacks_is_spelled_in_ascii():
    assert wording.spelled("✓ 2 × 3 … ж", "ascii") == "ok: 2 x 3 ... ?"
    assert wording.spelled("✓ 2 × 3 … ж", "utf-8") == "✓ 2 × 3 … ж"
    assert wording.spelled("2 × 3 ж", "no such encoding") == "2 x 3 ?"
    assert not wording.can_write("█", "latin-1")


def test_a_path_below_the_working_directory_is_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wording.path_text(tmp_path / "runs" / "a") == "runs/a"
    assert wording.path_text("/elsewhere/a") == "/elsewhere/a"
    assert wording.path_text("runs/a") == "runs/a"
