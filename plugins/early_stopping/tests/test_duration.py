"""Lengths of time as people write them, and back."""

from __future__ import annotations

from datetime import time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import SettingsError, TrainingArguments
from trainer_core_early_stopping.duration import in_words, seconds_of


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        (90, 90),
        (0.5, 0.5),
        ("30s", 30),
        ("90m", 5400),
        ("2h", 7200),
        ("2H", 7200),
        ("1.5h", 5400),
        ("1d12h", 129_600),
        (" 1 d 12 h 5m 0.5s ", 129_900.5),
        ("01:30:00", 5400),
        ("100:00:01", 360_001),
        (timedelta(hours=2), 7200),
        (time(1, 30, 0, 500_000), 5400.5),
    ],
    ids=str,
)
def test_seconds_are_read_out_of_what_is_given(given_, seconds):
    assert TrainingArguments(max_time=given_).max_time == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "2 hours", "12h1d", "1:30", "01:60:00", "-1h", "1h-5m", "1e3s", "٣"])
def test_other_text_is_refused_with_what_to_write(text):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(max_time=text)
    assert caught.value.problems == [
        f"max_time: must be a length of time, got {text!r} (from keyword). "
        "Give seconds as a number, or text like '30s', '90m', '1d12h' or '01:30:00'."
    ]


@pytest.mark.parametrize(
    ("given_", "what"),
    [
        (0, "must be greater than 0, got 0"),
        ("0s", "must be greater than 0, got '0s'"),
        (-5, "must be greater than 0, got -5"),
        (timedelta(0), "must be greater than 0, got datetime.timedelta(0)"),
        (True, "must be a number, got True"),
        ([1], "must be a number, got [1]"),
        (float("inf"), "must be a finite number, got inf"),
    ],
    ids=str,
)
def test_what_is_no_length_is_refused(given_, what):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(max_time=given_)
    assert caught.value.problems[0].startswith(f"max_time: {what} (from keyword).")


def test_every_source_writes_it_in_its_own_way(tmp_path, monkeypatch):
    for name, text, seconds in [
        ("a.yaml", "max_time: 90m", 5400),
        ("b.yaml", "stop_at:\n  max_time: 01:30:00", 5400),  # YAML 1.1 has numbers to the base of sixty
        ("c.toml", "max_time = 01:30:00", 5400),  # and TOML times of day
        ("d.json", '{"stop_at": {"max_time": "2h"}}', 7200),
    ]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert TrainingArguments.from_file(tmp_path / name).max_time == seconds
    assert TrainingArguments.from_command_line(["--max_time", "1d12h"]).max_time == 129_600
    assert TrainingArguments.from_command_line(["--stop_at.max_time", "90"]).max_time == 90
    monkeypatch.setenv("TRAINER_CORE_MAX_TIME", "01:30:00")
    assert TrainingArguments().max_time == 5400


def test_the_schema_takes_numbers_and_text():
    schema = TrainingArguments.json_schema()["properties"]["max_time"]
    assert schema["anyOf"] == [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}, {"type": "null"}]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "0.5s"),
        (30, "30s"),
        (60, "1m"),
        (5400, "1h30m"),
        (129_600, "1d12h"),
        (90_061.25, "1d1h1m1.25s"),
        (59.9999, "1m"),
        (0.0001, "0s"),
    ],
)
def test_a_length_is_told_in_the_units_that_suit_it(seconds, text):
    assert in_words(seconds) == text


@given(st.integers(1, 10**10))
def test_what_is_told_reads_back(milliseconds):
    assert seconds_of(in_words(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-3)
