"""Trackers whose libraries are too heavy to install here: what Accelerate's own classes for them are handed."""

from importlib.util import find_spec

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

OPTIONS = {"run_name": "one", "project": "mine", "logging_dir": "logs"}


class Library:
    """Stands for the run object of a tracker's library."""

    def __init__(self, calls):
        self.calls = calls

    def __getattr__(self, name):
        return lambda *args, **keywords: self.calls.append((name, *args, *keywords.values()))


@pytest.fixture
def handed(trainer_of, tmp_path, monkeypatch):
    """Gives a function that trains with a tracker; gives its class's attributes and the calls of its library."""

    def train(name, **options):
        calls = []

        class Unstarted(LOGGER_TYPE_TO_CLASS[name]):
            def start(self):
                calls.append(("start", self))
                self.run = self.writer = self.task = self.live = Library(calls)

            def store_init_configuration(self, values):
                calls.append(("settings", {"plan", "learning_rate"} <= values.keys()))

            def log(self, values, step=None):
                calls.append(("log", next(iter(values)), step))

            def finish(self):
                calls.append(("finish",))

        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, Unstarted)
        monkeypatch.setattr("trainer_core_trackers.known.find_spec", lambda module: find_spec("json"))
        trainer_of(tmp_path, report_to=name, max_steps=5, eval_strategy="no", **options).train()
        return calls

    return train


ROWS = [("settings", True), ("log", "train/loss", 5), ("log", "train/train_runtime", 5)]
CLEARML = [("settings", True), ("log", "train_loss", 5), ("log", "train_train_runtime", 5)]


@pytest.mark.parametrize(
    ("name", "options", "constructed", "calls"),
    [
        ("aim", ("run_name", "project", "logging_dir"),
         {"run_name": "one", "aim_repo_path": "logs", "init_kwargs": {"experiment": "mine"}}, [*ROWS, ("finish",)]),
        ("clearml", ("run_name", "project"),
         {"user_provided_run_name": "mine", "init_kwargs": {"task_name": "one"}}, [*CLEARML, ("finish",)]),
        ("comet_ml", ("run_name", "project"), {"run_name": "mine", "init_kwargs": {}},
         [("set_name", "one"), *ROWS, ("log_other", "outcome", "completed"), ("finish",)]),
        ("dvclive", ("run_name",), {"init_kwargs": {"exp_name": "one"}}, [*ROWS, ("finish",)]),
        ("swanlab", ("run_name", "project"),
         {"run_name": "mine", "init_kwargs": {"experiment_name": "one"}}, [*ROWS, ("finish",)]),
    ],
)  # fmt: skip
def test_names_settings_rows_and_outcome_reach_the_class(handed, name, options, constructed, calls):
    (what, tracker), *rest = handed(name, **{option: OPTIONS[option] for option in options})
    assert what == "start"
    assert {attribute: getattr(tracker, attribute) for attribute in constructed} == constructed
    assert rest == calls


@pytest.mark.parametrize(
    ("name", "variable"),
    [("clearml", "CLEARML_PROJECT"), ("comet_ml", "COMET_PROJECT_NAME"), ("swanlab", "SWANLAB_PROJ_NAME")],
)
def test_a_project_may_come_from_the_trackers_own_variable(handed, monkeypatch, name, variable):
    monkeypatch.setenv(variable, "elsewhere")
    (_, tracker), *_ = handed(name)
    assert "elsewhere" in vars(tracker).values()


def test_further_keywords_reach_the_class(handed):
    (_, tracker), *_ = handed("swanlab", trackers={"init_kwargs": {"swanlab": {"mode": "disabled"}}})
    assert (tracker.run_name, tracker.init_kwargs) == ("huggingface", {"mode": "disabled"})


def test_a_tracker_that_this_accelerate_lacks_is_said(trainer_of, warnings_of, tmp_path, monkeypatch):
    monkeypatch.delitem(LOGGER_TYPE_TO_CLASS, "tensorboard")
    trainer_of(tmp_path, report_to="tensorboard", max_steps=1).train()
    (told,) = warnings_of()
    known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
    assert told == (
        "report_to: tensorboard cannot be started, got TrackerError: this version of Accelerate has no tracker of "
        f"that name, only {known}. The run goes on without it."
    )
