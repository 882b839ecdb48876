import pytest

from trainer_core import TrainingArguments
from trainer_core_trackers.plugin import reported
from trainer_core_trackers.rows import Rows, flattened, grouped


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "train/loss"),
        ("epoch", "train/epoch"),
        ("train_runtime", "train/train_runtime"),
        ("train_loss", "train/train_loss"),
        ("eval_loss", "eval/loss"),
        ("eval_french_accuracy", "eval/french_accuracy"),
        ("test_loss", "test/loss"),
        ("evaluation", "train/evaluation"),
    ],
)
def test_a_metric_stands_in_its_group(name, expected):
    assert grouped(name) == expected


def test_what_is_no_number_is_dropped_and_said_once(warnings_of):
    rows = Rows()
    nan = float("nan")
    row = {"loss": 1, "eval_good": True, "grad_norm": nan, "note": "text", "matrix": [1, 2], "step": 7}
    expected = {"train/loss": 1, "eval/good": True, "train/grad_norm": nan}
    assert [rows.metrics(row), rows.metrics(row)] == [expected, expected]
    assert warnings_of() == [
        "note: is not reported, trackers take numbers, got str. Log numbers.",
        "matrix: is not reported, trackers take numbers, got list. Log numbers.",
    ]


def test_settings_are_flat():
    nested = {"a": 1, "b": {"c": None, "d": {"e": "x"}}, "f": [1, {"g": 2}], "h": True}
    expected = {"a": 1, "b.c": None, "b.d.e": "x", "f": '[1, {"g": 2}]', "h": True}
    assert dict(flattened(nested)) == expected


class Arguments(TrainingArguments):
    service_token: str | None = None


def test_no_secret_is_reported():
    trackers = {"report_to": "comet_ml", "init_kwargs": {"comet_ml": {"api_key": "abcdef", "url": "u:pw@host"}}}
    values = reported(Arguments("runs", service_token="verysecret", trackers=trackers).to_dict())
    assert (values["service_token"], values["trackers.report_to"]) == ("***", "comet_ml")
    assert not [name for name, value in values.items() if str(value) in ("verysecret", "abcdef", "u:pw@host")]
