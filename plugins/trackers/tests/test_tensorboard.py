import json
import os
import re
import signal
import socket
import textwrap
from typing import ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer_core import Signal
from trainer_core.testing import PluginConformance
from trainer_core_trackers import Trackers
from trainer_core_trackers.plugin import reported


class TestTrackers(PluginConformance):
    plugin_type = Trackers
    flat: ClassVar = {"report_to": "tensorboard", "run_name": "one"}


class TestTrackersInAFolder(PluginConformance):
    plugin_type = Trackers
    settings: ClassVar = {"report_to": ["tensorboard"], "init_kwargs": {"tensorboard": {"max_queue": 5}}}


def read(folder):
    """Gives (metric, step) -> values, and name -> texts, of a folder of TensorBoard's."""
    events = EventAccumulator(str(folder))
    events.Reload()
    numbers, texts = {}, {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            numbers.setdefault((tag, event.step), []).append(event.value)
    for tag in events.Tags()["tensors"]:
        found = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
        texts[tag.removesuffix("/text_summary")] = found
    return numbers, texts


def once(rows):
    """Gives rows as 32 bits hold them."""
    return {key: pytest.approx(values, rel=1e-6) for key, values in rows.items()}


def folders(output_dir):
    return sorted(folder.name for folder in (output_dir / "runs").iterdir())


@pytest.fixture(scope="module")
def finished(trainer_of, tmp_path_factory):
    trainer = trainer_of(tmp_path_factory.mktemp("run"), report_to="tensorboard")
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def told(finished, tmp_path_factory):
    (folder,) = (tmp_path_factory.getbasetemp() / finished.args.output_dir / "runs").iterdir()
    return folder, *read(folder)


def test_every_logged_number_is_reported_under_its_step(finished, told, rows_of):
    _, numbers, _ = told
    assert numbers == once(rows_of(finished.state.log_history))
    assert {tag for tag, _ in numbers} == {
        "train/loss", "train/grad_norm", "train/learning_rate", "train/epoch",
        "eval/loss", "eval/accuracy", "eval/runtime", "eval/samples_per_second", "eval/steps_per_second",
        "train/train_runtime", "train/train_samples_per_second", "train/train_steps_per_second", "train/train_loss",
    }  # fmt: skip
    assert [step for tag, step in numbers if tag == "train/loss"] == [5, 10, 15, 20]
    assert [step for tag, step in numbers if tag == "eval/loss"] == [12, 24]


def test_settings_plan_and_outcome_go_along(finished, told):
    _, _, texts = told
    settings, plan = (json.loads(textwrap.dedent(texts[name][0])) for name in ("settings", "plan"))
    assert settings == reported(finished.args.to_dict())
    assert (settings["learning_rate"], settings["logging.steps"]) == (5e-05, 5)
    assert plan == finished.last_plan.to_dict()
    assert texts.keys() == {"settings", "plan", "outcome"}
    assert texts["outcome"] == ["completed"]


def test_a_run_without_a_name_is_a_folder_of_its_time_and_host(told):
    folder, _, _ = told
    assert re.fullmatch(rf"[A-Z][a-z]{{2}}\d\d_\d\d-\d\d-\d\d_{re.escape(socket.gethostname())}", folder.name)


def test_a_second_run_is_one_of_its_own(trainer_of, tmp_path):
    trainer = trainer_of(tmp_path, report_to="tensorboard", run_name="mine", max_steps=5)
    trainer.train()
    first = read(tmp_path / "runs" / "mine")
    trainer.train()
    assert folders(tmp_path) == ["mine", "mine-2"]
    assert read(tmp_path / "runs" / "mine") == first
    assert read(tmp_path / "runs" / "mine-2")[0].keys() == first[0].keys()


def test_a_given_folder_is_the_run_and_a_second_one_lies_in_it(trainer_of, tmp_path):
    trainer = trainer_of(tmp_path / "run", report_to=["tensorboard"], logging_dir=str(tmp_path / "logs"), max_steps=5)
    trainer.train()
    trainer.train()
    assert read(tmp_path / "logs")[0].keys() == read(tmp_path / "logs" / "run-2")[0].keys() != set()
    assert not (tmp_path / "run" / "runs").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "steps", "save_steps": 10},
        # the row and the evaluation of the epoch's last step come after its checkpoint, and are logged again
        {"save_strategy": "steps", "save_steps": 12, "logging_strategy": "epoch"},
    ],
)
def test_a_resumed_run_goes_on_in_its_folder_and_doubles_no_step(trainer_of, failing, rows_of, tmp_path, options):
    options = {"report_to": "tensorboard", **options}
    failing(tmp_path, 17, **options)
    (before,) = folders(tmp_path)
    trainer = trainer_of(tmp_path, **options)
    trainer.train(resume_from_checkpoint=True)
    numbers, texts = read(tmp_path / "runs" / before)
    assert numbers == once(rows_of(trainer.state.log_history))
    assert folders(tmp_path) == [before]
    assert texts["outcome"] == ["failed, EndError: the test ends it", "completed"]


def test_a_run_that_is_resumed_elsewhere_has_all_its_rows_there(trainer_of, failing, rows_of, tmp_path):
    options = {"report_to": "tensorboard", "run_name": "one", "save_strategy": "steps", "save_steps": 10}
    failing(tmp_path / "first", 17, **options)
    trainer = trainer_of(tmp_path / "second", **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-10"))
    numbers, _ = read(tmp_path / "second" / "runs" / "one")
    assert numbers == once(rows_of(trainer.state.log_history))
    assert ("train/loss", 5) in numbers


def test_a_run_that_is_interrupted_says_so(trainer_of, tmp_path):
    class Interrupts:
        def on_step_end(self, trainer):
            trainer.request(Signal.STOP, by="test", why="it says so", interrupt=True)

    trainer_of(tmp_path, [Interrupts()], report_to="tensorboard", run_name="one").train()
    assert read(tmp_path / "runs" / "one")[1]["outcome"] == ["interrupted"]


def test_a_run_that_the_user_ends_at_once_is_closed(trainer_of, tmp_path):
    class Impatient:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 6:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    trainer = trainer_of(tmp_path, [Impatient()], report_to="tensorboard", run_name="one")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    numbers, texts = read(tmp_path / "runs" / "one")
    assert texts["outcome"] == ["failed, KeyboardInterrupt: SIGINT: stopped at once"]
    assert [step for tag, step in numbers if tag == "train/loss"] == [5]
    assert trainer.bus.members["trackers"].plugin._open == []


def test_an_evaluation_after_training_belongs_to_the_run(trainer_of, rows_of, tmp_path):
    trainer = trainer_of(tmp_path, report_to="tensorboard", run_name="one", max_steps=5, eval_strategy="no")
    trainer.train()
    trainer.evaluate(metric_key_prefix="test")
    numbers, texts = read(tmp_path / "runs" / "one")
    assert numbers == once(rows_of(trainer.state.log_history))
    assert [key for key in numbers if key[0].startswith("test/")][:2] == [("test/loss", 5), ("test/accuracy", 5)]
    assert len(texts["settings"]) == 1
    assert folders(tmp_path) == ["one"]


def test_evaluations_without_training_are_a_run(trainer_of, tmp_path):
    trainer = trainer_of(tmp_path, report_to="tensorboard", run_name="one", max_steps=5)
    trainer.evaluate()
    trainer.evaluate(metric_key_prefix="test")
    numbers, texts = read(tmp_path / "runs" / "one")
    assert {tag for tag, _ in numbers if tag.endswith("/loss")} == {"eval/loss", "test/loss"}
    assert len(texts["settings"]) == 1
    trainer.train()
    assert folders(tmp_path) == ["one", "one-2"]
