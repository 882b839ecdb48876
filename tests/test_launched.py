"""What scripts of the original ask their arguments for."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from trainer_core import SettingsError, TrainingArguments


@pytest.fixture
def second(monkeypatch):
    """This process is rank 3 of 4, the second on its node."""
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_one_process_is_alone():
    args = TrainingArguments()
    assert (args.world_size, args.process_index, args.local_process_index) == (1, 0, 0)
    assert (args.should_log, args.should_save) == (True, True)
    assert (args.local_rank, args.parallel_mode.value) == (0, "not_parallel")


def test_a_process_knows_what_its_launcher_told_it(second):
    args = TrainingArguments()
    assert (args.world_size, args.process_index, args.local_process_index) == (4, 3, 1)
    assert (args.should_log, args.should_save) == (False, False)
    assert (args.local_rank, args.parallel_mode.value) == (1, "distributed")


@pytest.mark.parametrize("text", ["", "one", "-1", "1.5"])
def test_a_launcher_that_tells_no_number_is_refused(monkeypatch, text):
    monkeypatch.setenv("RANK", text)
    with pytest.raises(SettingsError) as caught:
        _ = TrainingArguments().process_index
    what = f"environment RANK: must be a whole number, got {text!r}"
    assert caught.value.problems == [f"{what}. Start the script with torchrun or accelerate launch."]


def test_the_first_of_a_node_logs_unless_one_of_all_does(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert TrainingArguments().should_log
    assert not TrainingArguments(log_on_each_node=False).should_log


def test_the_level_is_information_on_a_main_process_and_warnings_on_others(second):
    assert TrainingArguments().get_process_log_level() == logging.WARNING
    assert TrainingArguments(log_level_replica="error").get_process_log_level() == logging.ERROR


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, logging.INFO),
        ({"log_level": "warning"}, logging.WARNING),
        ({"log_level": "detail"}, logging.DEBUG),
        ({"log_level": "debug"}, logging.DEBUG),
        ({"log_level": "critical", "log_level_replica": "debug"}, logging.CRITICAL),
    ],
)
def test_the_level_of_one_process(options, level):
    assert TrainingArguments(**options).get_process_log_level() == level


@pytest.mark.parametrize(("on_each_node", "level"), [(True, logging.INFO), (False, logging.WARNING)])
def test_the_first_of_another_node_is_a_main_process_unless_one_of_all_is(monkeypatch, on_each_node, level):
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert TrainingArguments(log_on_each_node=on_each_node).get_process_log_level() == level


def test_a_passive_level_is_that_of_the_logger():
    logger = logging.getLogger("trainer_core")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        assert TrainingArguments(log_level="passive").get_process_log_level() == logging.ERROR
    finally:
        logger.setLevel(before)


def test_without_the_plugin_the_level_is_not_there_and_says_why():
    with pytest.raises(AttributeError, match=r"get_process_log_level: belongs to 'logging', which is off. Turn it on."):
        TrainingArguments(logging=None).get_process_log_level()
    blocked = TrainingArguments(block_plugins=["logging"])
    with pytest.raises(
        AttributeError, match=r"get_process_log_level: belongs to the plugin 'logging', which is blocked"
    ):
        blocked.get_process_log_level()


def test_the_device_and_the_number_of_accelerators():
    args = TrainingArguments(use_cpu=True)
    assert (args.device, args.n_gpu) == (torch.device("cpu"), 0)


def test_batch_sizes_of_this_process():
    args = TrainingArguments(per_device_train_batch_size=3, per_device_eval_batch_size=5)
    assert (args.train_batch_size, args.eval_batch_size) == (3, 5)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 0), ({"warmup_steps": 7}, 7), ({"warmup_steps": 0.25}, 3), ({"warmup_ratio": 0.1}, 2)],
)
def test_warm_up_in_steps(options, steps):
    assert TrainingArguments(**options).get_warmup_steps(11) == steps


def test_values_as_text_and_as_scalars_hold_no_secret():
    args = TrainingArguments(hub_token="hf_" + "a" * 20, label_names=["y"])
    assert json.loads(args.to_json_string())["label_names"] == ["y"]
    plain = args.to_sanitized_dict()
    assert {type(value) for value in plain.values()} <= {bool, int, float, str}
    assert (plain["label_names"], plain["train_batch_size"]) == ("['y']", 8)
    assert "hf_a" not in args.to_json_string() + str(plain)


@pytest.mark.parametrize("local", [True, False])
def test_what_the_main_process_does_first_is_done(local):
    done = []
    with TrainingArguments(use_cpu=True).main_process_first(local=local, desc="reading"):
        done.append(1)
    assert done == [1]


def test_setters_of_the_original_say_what_to_do():
    with pytest.raises(AttributeError, match=r"set_training: settings are frozen. Use args.replace"):
        TrainingArguments().set_training(batch_size=3)


APP = """
import json
import sys
import time
from pathlib import Path

from trainer_core import TrainingArguments

args = TrainingArguments.from_command_line()
folder = Path(args.output_dir)
for local in (True, False):
    with args.main_process_first(local=local, desc="preparing"):
        found = sorted(path.name for path in folder.glob(f"first-{local}-*"))
        time.sleep(0.3 if args.process_index == 0 else 0)
        (folder / f"first-{local}-{args.process_index}").touch()
    told = folder / f"told-{local}-{args.process_index}.json"
    told.write_text(json.dumps(found))
try:
    with args.main_process_first():
        if args.process_index == 0:
            raise ValueError("it failed")
except ValueError:
    pass
told = [args.world_size, args.process_index, args.local_rank, args.device.type, args.n_gpu, args.should_log]
(folder / f"told-{args.process_index}.json").write_text(json.dumps([*told, args.get_process_log_level()]))
"""


@pytest.mark.slow
def test_two_processes_know_their_place_and_one_goes_first(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "app.py"]
    line = ["--output_dir", ".", "--log_level", "warning", "--log_level_replica", "error"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    told = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("told-*.json")}
    assert told == {
        "told-True-0": [],
        "told-True-1": ["first-True-0"],
        "told-False-0": [],
        "told-False-1": ["first-False-0"],
        "told-0": [2, 0, 0, "cpu", 0, True, logging.WARNING],
        "told-1": [2, 1, 1, "cpu", 0, False, logging.ERROR],
    }
