import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import Cadence, SettingsError, TrainingArguments, hookimpl
from trainer_core.testing import PluginConformance, only
from trainer_core_logging import Logging, LoggingSettings


class TestLogging(PluginConformance):
    plugin_type = Logging
    flat: ClassVar = {"logging_steps": 5, "logging_first_step": True, "log_level": "debug"}


class TestDefaults(PluginConformance):
    plugin_type = Logging


def steps(rows):
    return [row["step"] for row in rows if "loss" in row]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"logging_steps": 10}, [10, 20]),
        ({"logging_steps": 0.25}, [6, 12, 18, 24]),
        ({"logging_steps": 10, "logging_first_step": True}, [1, 10, 20]),
        ({"logging_steps": 1, "max_steps": 3}, [1, 2, 3]),
        ({"logging_strategy": "epoch"}, [12, 24]),
        ({"logging_strategy": "no", "logging_steps": 1}, []),
        ({"logging_strategy": "no", "logging_first_step": True}, [1]),
        ({"logging": {"strategy": "steps", "steps": 7}}, [7, 14, 21]),
        ({"logging": None}, []),
    ],
)
def test_a_row_is_logged_when_the_settings_say(train, options, expected):
    trainer = train(**options)
    assert steps(trainer.state.log_history) == expected


@pytest.mark.parametrize(
    ("options", "every"),
    [({}, 500), ({"logging_steps": 0.25}, 6), ({"logging_strategy": "epoch", "logging_steps": 5}, 0)],
)
def test_the_state_tells_how_many_updates_lie_between_two_rows(train, options, every):
    assert train(**options).state.logging_steps == every


def test_a_row_has_the_mean_loss_of_the_updates_since_the_last_one(train):
    single = [row["loss"] for row in train(logging_steps=1, max_steps=10).state.log_history if "loss" in row]
    by_five = [row["loss"] for row in train(logging_steps=5, max_steps=10).state.log_history if "loss" in row]
    assert by_five == pytest.approx([sum(single[:5]) / 5, sum(single[5:]) / 5])


def test_a_row_is_logged_after_the_other_plugins_had_the_update(train):
    heard = []

    class Other:
        def on_step_end(self):
            heard.append("step")

        def on_log(self, logs):
            heard.append("log" if "loss" in logs else "end")

    class Last(Other):
        @hookimpl(tryfirst=True)
        def on_step_end(self):
            heard.append("first")

    train([Other(), Last()], max_steps=1, logging_steps=1, eval_strategy="no")
    assert heard == ["first", "step", "log", "log", "end", "end"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"logging_steps": 10}, [("logging_steps", [10, 20])]),
        ({"logging_steps": 500}, [("logging_steps", [])]),
        ({"logging_steps": 10, "logging_first_step": True}, [("logging_first_step", [1]), ("logging_steps", [10, 20])]),
        ({"logging_strategy": "epoch"}, [("logging_strategy", [12, 24])]),
        ({"logging_strategy": "no"}, []),
    ],
)
def test_the_plan_says_when_rows_are_logged(train, options, expected):
    trainer = train(**options)
    found = [entry for entry in trainer.plan().scheduled if entry.what == "log"]
    assert [(entry.by, list(entry.steps)) for entry in found] == expected


@given(every=st.one_of(st.integers(1, 40), st.floats(0.01, 0.99)), max_steps=st.integers(1, 100))
def test_the_plan_foretells_what_the_cadence_does(every, max_steps):
    told = []

    class Plan:
        updates_per_epoch = None

        def schedule(self, what, by, steps):
            told.extend(steps)

    plan = Plan()
    plan.max_steps = max_steps
    plugin = Logging(LoggingSettings(steps=every))
    plugin.on_plan(plan)
    number = math.ceil(round(max_steps * every, 9)) if every < 1 else int(every)
    cadence = Cadence("steps", max(1, number), at_the_end=False)
    assert told == [step for step in range(1, max_steps + 1) if cadence.is_due(step, max_steps)]


def test_flat_names_and_sections_are_one():
    with only("logging"):
        flat = TrainingArguments(logging_steps=7, log_level="error", log_level_replica="info", log_on_each_node=False)
        nested = TrainingArguments(
            logging={"steps": 7, "level": "error", "level_replica": "info", "on_each_node": False}
        )
    assert flat == nested
    assert flat.logging == LoggingSettings(steps=7, level="error", level_replica="info", on_each_node=False)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"logging_steps": 0}, "logging_steps: must be greater than 0, got 0 (from keyword). Use a value above 0."),
        ({"logging_steps": -1}, "logging_steps: must be greater than 0, got -1 (from keyword). Use a value above 0."),
        (
            {"logging_steps": 1.5},
            "logging_steps: must be a whole number of steps or a share below 1, got 1.5 (from keyword). Round it.",
        ),
        (
            {"logging_strategy": "step"},
            "logging_strategy: must be one of 'no', 'steps', 'epoch', got 'step' (from keyword). Did you mean 'steps'?",
        ),
        (
            {"log_level": "inof"},
            "log_level: must be one of 'detail', 'debug', 'info', 'warning', 'error', 'critical', 'passive', "
            "got 'inof' (from keyword). Did you mean 'info'?",
        ),
        (
            {"logging": {"file": "logs/rows.jsonl"}},
            "logging.file: must be a file's name without a folder, got 'logs/rows.jsonl' (from keyword). "
            "The file lies in output_dir.",
        ),
        (
            {"logging": {"file": "journal.jsonl"}},
            "logging.file: is the name of the run's journal, got 'journal.jsonl' (from keyword). Use another one.",
        ),
    ],
)
def test_a_mistake_is_told_before_training(options, problem):
    with only("logging"), pytest.raises(SettingsError) as caught:
        TrainingArguments(**options)
    assert caught.value.problems == [problem]


ON_TWO_RANKS = """
import logging, sys
from trainer_core.testing import run
class Looking:
    def on_epoch_end(self, trainer):
        # one write a line: the ranks share a pipe
        sys.stdout.write(f"level {trainer.ranks.rank} {logging.getLogger('trainer_core').level}\\n")
        sys.stdout.flush()
run([Looking()], installed=["logging"], output_dir=sys.argv[1], logging_steps=3, log_on_each_node=False)
"""


@pytest.mark.slow
def test_on_two_ranks_a_row_is_written_once_and_each_has_its_level(rows, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ON_TWO_RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, script, tmp_path], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert steps(rows()) == [3, 6, 9, 12]
    assert len([row for row in rows() if "eval_loss" in row]) == 2
    levels = {tuple(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("level")}
    assert levels == {("0", str(logging.INFO)), ("1", str(logging.WARNING))}


def test_the_standard_module_stays_itself_from_every_folder(tmp_path):
    code = (
        "import logging, trainer_core_logging; "
        "from trainer_core import TrainingArguments; "
        "print(logging.getLogger, type(TrainingArguments(logging_steps=3).logging).__name__)"
    )
    with only("logging"):
        environment = dict(os.environ)
    for folder in (tmp_path, Path(__file__).parents[1], Path(__file__).parents[2]):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("<function getLogger at ")
        assert done.stdout.endswith(" LoggingSettings\n")
