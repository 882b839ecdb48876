"""Real runs in a local database of Trackio's, read back with SQL."""

import json
from uuid import uuid4

import pytest

from trainer_core_trackers.plugin import reported

PROJECT = f"test-{uuid4().hex}"


@pytest.fixture(scope="module", autouse=True)
def trackio(apart):
    """Trackio chooses its folder when it is imported: after `apart` has named one."""
    import trackio

    return trackio


@pytest.fixture(scope="module")
def finished(trainer_of, failing, tmp_path_factory):
    """Gives the last trainer of a run that failed, went on from its checkpoint and was evaluated."""
    options = {
        "report_to": "trackio",
        "project": PROJECT,
        "run_name": "one",
        "save_strategy": "steps",
        "save_steps": 10,
    }
    folder = tmp_path_factory.mktemp("run")
    failing(folder, 17, **options)
    trainer = trainer_of(folder, **options)
    trainer.train(resume_from_checkpoint=True)
    trainer.evaluate(metric_key_prefix="test")
    return trainer


@pytest.fixture(scope="module")
def database(trackio):
    return trackio.utils.TRACKIO_DIR / f"{PROJECT}.db"


def test_a_run_goes_on_by_its_name(finished, database, table):
    told = table(database, "SELECT step, metrics FROM metrics WHERE run_name = 'one' ORDER BY id")
    rows = [(step, json.loads(metrics)) for step, metrics in told]
    losses = [(step, row["train/loss"]) for step, row in rows if "train/loss" in row]
    assert [step for step, _ in losses] == [5, 10, 15, 15, 20]
    wanted = {row["step"]: row["loss"] for row in finished.state.log_history if "loss" in row}
    assert dict(losses) == pytest.approx(wanted)
    assert [(step, row["outcome"]) for step, row in rows if "outcome" in row] == [
        (17, "failed, EndError: the test ends it"), (24, "completed"),
    ]  # fmt: skip
    assert [step for step, row in rows if "test/loss" in row] == [24]
    assert len(table(database, "SELECT DISTINCT run_id FROM metrics")) == 1


def test_settings_and_plan_are_the_configuration(finished, database, table):
    ((text,),) = table(database, "SELECT config FROM configs")
    config = {name: value for name, value in json.loads(text).items() if name[0] != "_"}
    assert json.loads(config.pop("plan")) == finished.last_plan.to_dict()
    assert config == reported(finished.args.to_dict())


def test_a_run_is_over_when_training_is(finished, trackio):
    with pytest.raises(RuntimeError, match=r"before trackio\.finish"):
        trackio.finish()


@pytest.mark.parametrize(
    ("options", "call"),
    [
        (
            {"trackio_static_space_id": "me/static", "trackio_bucket_id": "me/bucket"},
            ("sync", {"project": PROJECT, "space_id": "me/static", "sdk": "static", "bucket_id": "me/bucket",
                      "force": True}),
        ),
        (
            {"trackio_space_id": "me/space", "trackio_static_space_id": "me/static"},
            ("freeze", {"space_id": "me/space", "project": PROJECT, "new_space_id": "me/static"}),
        ),
        ({"trackio_static_space_id": False}, None),
    ],
)  # fmt: skip
def test_a_static_space_is_made_of_a_run_that_is_done(
    trainer_of, failing, trackio, tmp_path, monkeypatch, options, call
):
    """The Hub is not reached from here: what would be asked of it is looked at."""
    calls, inits, init = [], [], trackio.init

    def local(project, space_id=None, bucket_id=None, **others):
        inits.append((project, space_id, bucket_id))
        return init(project, **others)

    monkeypatch.setattr(trackio, "init", local)
    monkeypatch.setattr(trackio, "sync", lambda **given: calls.append(("sync", given)))
    monkeypatch.setattr(trackio, "freeze", lambda **given: calls.append(("freeze", given)))
    given = {"report_to": "trackio", "project": PROJECT, **options}
    failing(tmp_path / "failed", 3, **given)
    assert calls == []
    trainer_of(tmp_path / "done", max_steps=3, **given).train()
    assert calls == ([] if call is None else [call])
    assert inits == [(PROJECT, options.get("trackio_space_id"), None)] * 2
