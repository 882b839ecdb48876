import subprocess
import sys

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class

from trainer_core import SettingsError, TrainingArguments
from trainer_core.testing import only
from trainer_core_trackers import TrackersSettings
from trainer_core_trackers.known import KNOWN, is_installed


def problems(**options):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments("runs", **options)
    return caught.value.problems


@pytest.mark.parametrize("value", [None, "none", [], ["none"]])
def test_reporting_to_nothing_is_off(value, monkeypatch):
    assert TrainingArguments("runs", report_to=value).section("trackers") is None
    assert TrainingArguments("runs", report_to=value).report_to is None
    monkeypatch.setenv("TRAINER_CORE_REPORT_TO", "wandb")
    assert TrainingArguments("runs", report_to=value).section("trackers") is None
    assert TrainingArguments("runs").report_to == "wandb"


def test_a_command_line_turns_off_what_a_file_turned_on(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("report_to: [wandb, tensorboard]\nrun_name: mine\n")
    assert TrainingArguments.from_file(file).trackers.names == ["wandb", "tensorboard"]
    assert TrainingArguments.from_command_line(["--report_to", "none"], file=file).section("trackers") is None


@pytest.mark.parametrize(
    "line",
    [["--report_to", "wandb", "mlflow"], ["--report_to", "wandb,mlflow"], ["--report_to", '["wandb", "mlflow"]']],
)
def test_a_command_line_takes_several_names(line):
    args = TrainingArguments.from_command_line(line)
    assert args.trackers.names == ["wandb", "mlflow"]
    assert TrainingArguments(**args.to_dict()) == args


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("tensorbord", "report_to: knows no tracker 'tensorbord', got 'tensorbord' (from keyword). "
                       "Did you mean 'tensorboard'?"),
        (["wandb", "xyz"], "report_to: knows no tracker 'xyz', got ['wandb', 'xyz'] (from keyword). Trackers are aim, "
                           "clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio, wandb."),
        (["none", "wandb"], "report_to: names trackers and 'none', got ['none', 'wandb'] (from keyword). Keep one."),
        (",", "report_to: names no tracker, got ',' (from keyword). Leave the section out to have none."),
        ("codecarbon", "report_to: 'codecarbon' is none of Accelerate's trackers, got 'codecarbon' (from keyword). "
                       "Pass CodeCarbonCallback of transformers to Trainer in callbacks=[...]."),
        (object, "report_to: must be names of trackers, got <class 'object'> (from keyword). Register the class of a "
                 "tracker of your own with accelerate.tracking.register_tracker_class, and give its name."),
    ],
)  # fmt: skip
def test_a_name_that_no_tracker_has_is_refused(value, problem):
    assert problems(report_to=value) == [problem]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"report_to": "tensorboard", "trackio_space_id": "me/space"},
            "trackio_space_id: acts in trackio only, and report_to='tensorboard' has none of them, got 'me/space' "
            "(from keyword). Leave it out, or add one to report_to.",
        ),
        (
            {"report_to": ["tensorboard"], "project": "mine"},
            "project: acts in aim, clearml, comet_ml, mlflow, swanlab, trackio, wandb only, and "
            "report_to=['tensorboard'] has none of them, got 'mine' (from keyword). "
            "Leave it out, or add one to report_to.",
        ),
        (
            {"report_to": "wandb", "logging_dir": "logs"},
            "logging_dir: acts in aim, tensorboard only, and report_to='wandb' has none of them, got 'logs' "
            "(from keyword). Leave it out, or add one to report_to.",
        ),
        (
            {"report_to": "trackio", "trackio_bucket_id": "me/bucket"},
            "trackio_bucket_id: holds the data of a Space, and there is none, got 'me/bucket' (from keyword). "
            "Set trackio_space_id or trackio_static_space_id.",
        ),
        (
            {"report_to": "wandb", "trackers": {"init_kwargs": {"mlflow": {}}}},
            "init_kwargs.mlflow: report_to='wandb' has no such tracker. Leave it out, or add it.",
        ),
        (
            {"report_to": "wandb", "trackers": {"init_kwargs": {"wandb": {"name": "x", "mode": "offline"}}}},
            "init_kwargs.wandb.name: is run_name by another name. Set run_name instead.",
        ),
        (
            {"run_name": "mine"},
            "run_name: belongs to 'trackers', and it is off by default, got 'mine' (from keyword). "
            "Set report_to, or leave it out.",
        ),
        (
            {"report_to": "none", "run_name": "mine"},
            "run_name: belongs to 'trackers', and report_to='none' turns it off, got 'mine' (from keyword). "
            "Set report_to, or leave it out.",
        ),
        (
            {"trackers": True},
            "trackers: names no tracker, got report_to=None. Set report_to, or leave the section out.",
        ),
    ],
)
def test_an_option_that_cannot_act_is_refused(options, problem):
    assert problems(**options) == [problem]


@pytest.mark.parametrize("name", ["../../../evil", "a/../../b", "..", "/evil"])
@pytest.mark.parametrize("options", [{}, {"logging_dir": "logs"}])
def test_a_name_that_leads_out_of_tensorboards_folder_is_refused(name, options):
    base = options.get("logging_dir", "runs/runs")
    told = f"run_name: is a folder of TensorBoard in {base!r}, and must lie there, got {name!r} (from keyword). "
    remedy = "Leave '..' and a leading '/' out, or set logging_dir to have it elsewhere."
    assert problems(report_to=["tensorboard", "wandb"], run_name=name, **options) == [told + remedy]


@pytest.mark.parametrize(
    ("tracker", "name"), [("wandb", "../one"), ("tensorboard", "team/one"), ("tensorboard", "a..b")]
)
def test_a_name_that_leads_nowhere_else_is_taken(tracker, name):
    assert TrainingArguments("runs", report_to=tracker, run_name=name).run_name == name


@pytest.mark.parametrize(
    "options",
    [
        {"report_to": ["tensorboard", "wandb"], "logging_dir": "logs", "project": "mine", "run_name": "one"},
        {"report_to": "trackio", "trackio_static_space_id": False},
        {"report_to": "trackio", "trackio_space_id": "me/space", "trackio_bucket_id": "me/bucket"},
        {"report_to": "trackio", "trackio_static_space_id": "me/space", "trackio_bucket_id": "me/bucket"},
        {"trackers": {"report_to": "wandb", "init_kwargs": {"wandb": {"mode": "offline", "tags": ["a"]}}}},
    ],
)
def test_options_read_back_and_go_into_json_and_back(options):
    args = TrainingArguments("runs", **options)
    flat = {name: value for name, value in options.items() if name != "trackers"}
    assert {name: getattr(args, name) for name in flat} == flat
    assert TrainingArguments(**args.to_dict()) == args


def test_all_means_every_tracker_that_is_installed():
    settings = TrackersSettings(report_to="all")
    assert settings.names == [name for name in KNOWN if is_installed(name)]
    assert {"tensorboard", "wandb", "mlflow", "trackio"} <= {*settings.names}


def test_a_folder_that_a_tracker_left_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "swanlab").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("swanlab")
    (tmp_path / "swanlab" / "__init__.py").touch()
    assert is_installed("swanlab")


def test_a_tracker_that_is_not_installed_is_refused_before_training(trainer_of, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer_core_trackers.known.find_spec", lambda name: None)
    trainer = trainer_of(tmp_path, report_to=["comet_ml", "wandb"])
    expected = [
        "report_to: 'comet_ml' is not installed. Install it: pip install comet_ml.",
        "report_to: 'wandb' is not installed. Install it: pip install wandb.",
    ]
    assert trainer.plan().contradictions == expected
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == expected
    assert trainer.state.global_step == 0


def test_a_tracker_of_the_users_own_is_named_as_it_is_registered(monkeypatch):
    class Mine(GeneralTracker):
        name = "mine_alone"
        requires_logging_directory = False

    monkeypatch.delitem(LOGGER_TYPE_TO_CLASS, "mine_alone", raising=False)
    assert problems(report_to="mine_alone")[0].startswith("report_to: knows no tracker 'mine_alone'")
    register_tracker_class(Mine)
    args = TrainingArguments("runs", report_to=["tensorboard", "mine_alone"], project="p")
    assert args.trackers.names == ["tensorboard", "mine_alone"]
    assert "mine_alone" in TrackersSettings(report_to=["all", "mine_alone"]).names
    del LOGGER_TYPE_TO_CLASS["mine_alone"]


def test_settings_import_no_tracker():
    code = (
        "import sys; from trainer_core import TrainingArguments as T; T('r', report_to=['wandb', 'mlflow', 'all']);"
        "print([n for n in ('wandb', 'mlflow', 'trackio', 'tensorboard', 'accelerate', 'torch') if n in sys.modules])"
    )
    with only("trackers"):
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
