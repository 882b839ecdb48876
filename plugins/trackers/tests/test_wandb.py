"""Real offline runs, read back record by record from W&B's own file."""

import json
import struct
from time import monotonic, sleep

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from trainer_core.testing import check_plugin
from trainer_core_trackers import Trackers
from trainer_core_trackers.plugin import reported

BLOCK = 32768
ENDS_A_RECORD = (1, 4)


def records(file):
    """Gives the records of a file: LevelDB's log format behind a header of seven bytes."""
    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := BLOCK - position % BLOCK) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            return  # it is being written
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in ENDS_A_RECORD:
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


class Offline:
    """What a file says of a run."""

    def __init__(self, file):
        self.config, self.summary, self.axis, self.rows, self.exit_code = {}, {}, {}, [], None
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.started = record.run.start_time.ToNanoseconds()
                self.id, self.project, self.name = record.run.run_id, record.run.project, record.run.display_name
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif kind == "summary":
                self.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
            elif kind == "metric" and record.metric.glob_name:
                self.axis[record.metric.glob_name] = record.metric.step_metric
            elif kind == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                self.rows.append({name: json.loads(text) for name, text in items.items() if name[0] != "_"})
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def numbers(self):
        found = {}
        for row in self.rows:
            step = row["train/global_step"]
            for name, value in row.items():
                if name != "train/global_step":
                    found.setdefault((name, step), []).append(value)
        return found


def offline(folder, number):
    """Gives the runs of a folder, oldest first; W&B's service may still be writing when a run is over."""
    deadline = monotonic() + 60
    while monotonic() < deadline:
        runs = [Offline(file) for file in folder.glob("wandb/offline-run-*/*.wandb")]
        if len(runs) == number and all(run.exit_code is not None for run in runs):
            return sorted(runs, key=lambda run: run.started)
        sleep(0.05)
    raise AssertionError(f"{len(runs)} runs, {[run.exit_code for run in runs]}")


def options(folder, **more):
    keywords = {"mode": "offline", "dir": str(folder), "settings": {"console": "off"}}
    return {"report_to": "wandb", "trackers": {"init_kwargs": {"wandb": keywords}}, **more}


def test_it_keeps_the_promises_of_a_plugin(tmp_path):
    """That of an untouched process is not W&B's: its threads, exit hook and WANDB_SERVICE stay."""
    check_plugin(Trackers, settings={"report_to": "wandb", **options(tmp_path)["trackers"]}, promises=["run", "state"])


class PowerCut(BaseException):
    """Ends a run at once: nothing more is saved."""


@pytest.fixture(scope="module")
def finished(trainer_of, tmp_path_factory):
    """Gives a run that failed, went on from its checkpoint and was evaluated; the last trainer, and the files."""
    folder = tmp_path_factory.mktemp("run")
    given = options(folder, project="mine", run_name="one", save_strategy="steps", save_steps=10)

    class Ends:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 17:
                raise PowerCut("the test ends it")

    with pytest.raises(PowerCut):
        trainer_of(folder, [Ends()], **given).train()
    trainer = trainer_of(folder, **given)
    trainer.train(resume_from_checkpoint=True)
    trainer.evaluate(metric_key_prefix="test")
    return trainer, offline(folder, 3)


def test_all_parts_of_a_run_have_one_id(finished):
    _, parts = finished
    assert len(parts) == 3
    assert {(part.project, part.id) for part in parts} == {("mine", parts[0].id)}
    assert parts[0].name == "one"


def test_every_part_has_its_rows_over_the_update(finished, rows_of):
    trainer, (first, second, third) = finished
    history = trainer.state.log_history
    assert second.numbers() == rows_of([row for row in history if row["step"] > 10 and "test_loss" not in row])
    assert third.numbers() == rows_of(history[-1:])
    assert [row["train/global_step"] for row in first.rows] == [5, 10, 12, 15]
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/epoch"} < first.rows[0].keys()
    assert [part.axis for part in (first, second, third)] == [{"*": "train/global_step"}] * 3


def test_settings_and_plan_are_the_configuration(finished):
    trainer, (_, part, _) = finished
    config = {name: value for name, value in part.config.items() if name != "_wandb"}
    assert config.pop("plan") == trainer.last_plan.to_dict()
    assert config == reported(trainer.args.to_dict())


def test_the_outcome_is_in_the_summary_and_the_exit_code(finished):
    _, parts = finished
    assert [part.summary.get("outcome") for part in parts] == [
        "failed, PowerCut: the test ends it", "completed", None,
    ]  # fmt: skip
    assert [part.exit_code for part in parts] == [1, 0, 0]


def test_a_second_run_is_one_of_its_own_in_the_project_of_the_environment(trainer_of, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    trainer = trainer_of(tmp_path / "run", **options(tmp_path, max_steps=5))
    trainer.train()
    trainer.train()
    first, second = offline(tmp_path, 2)
    assert first.id != second.id
    assert [first.project, second.project] == ["elsewhere", "elsewhere"]


def test_a_run_of_the_callers_own_is_used_and_left_open(trainer_of, tmp_path):
    own = wandb.init(project="callers", mode="offline", dir=tmp_path, settings={"console": "off"})
    trainer_of(tmp_path / "run", report_to="wandb", max_steps=5).train()
    assert wandb.run is own
    own.log({"after": 1})
    own.finish()
    (run,) = offline(tmp_path, 1)
    assert [row["train/global_step"] for row in run.rows if "train/loss" in row] == [5]
    assert run.rows[-1]["after"] == 1
    assert run.summary["outcome"] == "completed"
