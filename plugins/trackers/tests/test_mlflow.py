"""Real runs in a local SQLite store, read back through MLflow's own client."""

import json
from typing import ClassVar

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from trainer_core.testing import PluginConformance
from trainer_core_trackers import Trackers
from trainer_core_trackers.plugin import reported

OPTIONS = {"report_to": "mlflow", "save_strategy": "steps", "save_steps": 10}


@pytest.fixture(scope="module", autouse=True)
def store(apart):
    """MLflow sets loggers of its own when it makes a store; a run that finds one leaves nothing in the process."""
    MlflowClient().search_experiments()


class TestTrackersWithMLflow(PluginConformance):
    plugin_type = Trackers
    flat: ClassVar = {"report_to": "mlflow", "project": "conformance"}


def runs(project):
    client = MlflowClient()
    return client.search_runs([client.get_experiment_by_name(project).experiment_id], order_by=["start_time"])


def numbers(run):
    """Gives (metric, step) -> values as they came."""
    client, found = MlflowClient(), {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            found.setdefault((name, metric.step), []).append(metric.value)
    return found


@pytest.fixture(scope="module")
def finished(trainer_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = trainer_of(folder, run_name="one", project="whole", **OPTIONS)
    trainer.train()
    return trainer


def test_a_run_has_its_numbers_settings_plan_and_status(finished, rows_of):
    (run,) = runs("whole")
    assert numbers(run) == rows_of(finished.state.log_history)
    settings = reported(finished.args.to_dict())
    assert run.data.params == {name: str(value) for name, value in settings.items() if value != ""}
    assert json.loads(run.data.tags["plan"]) == finished.last_plan.to_dict()
    assert (run.info.run_name, run.info.status, run.data.tags["outcome"]) == ("one", "FINISHED", "completed")
    assert mlflow.active_run() is None


def test_a_resumed_run_goes_on_in_the_run_that_failed(trainer_of, failing, warnings_of, tmp_path):
    failing(tmp_path, 17, project="cut", **OPTIONS)
    (failed,) = runs("cut")
    assert (failed.info.status, failed.data.tags["outcome"]) == ("FAILED", "failed, EndError: the test ends it")
    trainer = trainer_of(tmp_path, project="cut", **OPTIONS, learning_rate=1.0)  # parameters cannot change
    trainer.train(resume_from_checkpoint=True)
    trainer.evaluate(metric_key_prefix="test")
    (run,) = runs("cut")
    assert (run.info.run_id, run.info.status) == (failed.info.run_id, "FINISHED")
    assert run.data.params["learning_rate"] == "5e-05"
    steps = {step: len(values) for (name, step), values in numbers(run).items() if name == "train/loss"}
    assert steps == {5: 1, 10: 1, 15: 2, 20: 1}  # what is done again is there twice: MLflow only adds
    assert [step for name, step in numbers(run) if name == "test/loss"] == [24]
    assert warnings_of() == []


def test_a_run_that_is_gone_is_begun_anew(trainer_of, failing, warnings_of, tmp_path):
    failing(tmp_path, 17, project="gone", **OPTIONS)
    (lost,) = runs("gone")
    MlflowClient().delete_run(lost.info.run_id)
    trainer = trainer_of(tmp_path, project="gone", **OPTIONS)
    trainer.train(resume_from_checkpoint=True)
    (run,) = runs("gone")
    assert run.data.params["learning_rate"] == "5e-05"
    assert [step for name, step in numbers(run) if name == "train/loss"] == [15, 20]
    (told,) = warnings_of()
    assert told.startswith(f"report_to: mlflow cannot go on with {lost.info.run_id} (MlflowException: ")
    assert told.endswith("). A new run begins there.")


def test_a_run_of_the_callers_own_is_used_and_left_open(trainer_of, tmp_path):
    mlflow.set_experiment("callers")
    with mlflow.start_run() as own:
        trainer_of(tmp_path, report_to="mlflow", max_steps=5).train()
        assert mlflow.active_run().info.run_id == own.info.run_id
    (run,) = runs("callers")
    assert run.info.run_id == own.info.run_id
    assert ("train/loss", 5) in numbers(run)
    assert run.data.tags["outcome"] == "completed"


def test_a_long_plan_is_a_file(trainer_of, tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow.utils.validation.MAX_TAG_VAL_LENGTH", 100)
    trainer = trainer_of(tmp_path / "run", report_to="mlflow", project="long", max_steps=5)
    MlflowClient().create_experiment("long", artifact_location=f"file://{tmp_path}/artifacts")
    trainer.train()
    (run,) = runs("long")
    assert "plan" not in run.data.tags
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/plan.json")
    assert json.loads(text) == trainer.last_plan.to_dict()


def test_names_are_those_that_mlflow_takes(trainer_of, tmp_path):
    trainer = trainer_of(tmp_path, report_to="mlflow", project="names", max_steps=1)
    trainer.log({"recall@5": 0.5})
    (run,) = runs("names")
    assert numbers(run) == {("train/recall_5", 0): [0.5], ("train/epoch", 0): [0.0]}


def test_a_server_that_is_down_does_not_end_the_run(trainer_of, warnings_of, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    trainer = trainer_of(tmp_path, report_to="mlflow", max_steps=5)
    trainer.train()
    assert trainer.outcome == "completed"
    (told,) = warnings_of()
    assert told.startswith("report_to: mlflow cannot be started, got MlflowException: ")
    assert told.endswith(" The run goes on without it.")
