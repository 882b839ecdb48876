"""The crash matrix that plugins' authors run, on plugins that keep their promises and on some that do not."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer_core import Section
from trainer_core.testing import ConformanceError
from trainer_core.testing.crash import crash_matrix, matrix, seccomp
from trainer_core.testing.crash.supervisor import Plan

WATCHED = pytest.mark.usefixtures("sees_all_calls")


class CountingSettings(Section):
    """Counts updates by some step."""

    by: int = 1
    """How much each update counts."""


class Counting:
    """Scales the gradients by what it counted, so that a lost count changes the weights."""

    settings_type = CountingSettings

    def __init__(self, settings):
        self.by, self.count = settings.by, 0

    def on_pre_optimizer_step(self, trainer):
        self.count += self.by
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 1 + self.count / 10

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Forgetful(Counting):
    """Saves its count, and does not take it back."""

    def load_state_dict(self, state):
        pass


class Untidy(Counting):
    """Writes a file of its own in the output folder that nothing may be there before."""

    def on_train_begin(self, trainer):
        with open(Path(trainer.args.output_dir) / "mine.txt", "x") as file:
            file.write("here\n")


class Stuck(Counting):
    """Warns when its file cannot be written, and never comes back."""

    def on_step_end(self, trainer):
        try:
            Path(trainer.args.output_dir, "mine.txt").write_text("here\n")
        except OSError:
            logging.getLogger("trainer_core.stuck").warning("the disk is full")
            time.sleep(3600)


class Unwatched(Counting):
    """Makes of its process one that the kernel lets nobody watch."""

    def on_train_begin(self, trainer):
        seccomp.install = refused


def refused():
    raise OSError(errno.EPERM, "seccomp is refused")


class Failing(Counting):
    """Works nowhere."""

    def on_step_begin(self):
        raise LookupError("works nowhere")


@WATCHED
def test_a_strangers_plugin_with_a_memory_survives_at_sampled_places_of_each_kind():
    figures = crash_matrix(Counting, settings={"by": 2}, sample=6)
    assert (figures.points, figures.failures) == (1 + 3 * 6, 0)
    assert figures.kills == 6


@WATCHED
def test_a_lost_memory_is_found_and_said_with_the_place():
    with pytest.raises(ConformanceError) as caught:
        crash_matrix(Forgetful, kinds=["kills"], sample=8)
    problems = "\n".join(caught.value.problems)
    assert "the run.plugins.forgetful.count: is " in problems
    assert "Forgetful: killed at call " in problems
    assert "the run.model.head.weight: is " in problems


@WATCHED
def test_a_plugin_that_needs_a_person_after_a_kill_is_found():
    with pytest.raises(ConformanceError, match="a person is needed"):
        crash_matrix(Untidy, kinds=["kills"], sample=4)


@WATCHED
def test_a_plugin_that_hangs_at_a_full_disk_is_found_though_it_warned(monkeypatch):
    monkeypatch.setattr(matrix, "FAULTS", [Plan("fail", errno=errno.ENOSPC, lasts=True, patience_seconds=4.0)])
    with pytest.raises(ConformanceError, match=r"^Stuck: fail with ENOSPC at .*: it hangs$"):
        crash_matrix(Stuck, kinds=["faults"], sample=1)


@WATCHED
def test_the_matrix_works_without_a_file_of_rows():
    assert crash_matrix(Counting, flat={"logging": None}, kinds=["faults"], sample=4).failures == 0


def test_where_no_process_can_be_watched_power_cuts_are_refused():
    with pytest.raises(RuntimeError, match=r"seccomp is refused. Leave 'power cuts' out of `kinds`\.$"):
        crash_matrix(Unwatched)


def test_where_no_process_can_be_watched_it_is_killed_and_failed_at_calls_of_python():
    figures = crash_matrix(Unwatched, kinds=["kills", "faults"], sample=3)
    assert (figures.points, figures.kills, figures.faults) == (1 + 3 + 3, 3, 3)


def test_a_plugin_that_fails_when_nobody_kills_it_is_told_with_its_error():
    with pytest.raises(RuntimeError, match=r"(?s)it cannot be prepared.*LookupError: works nowhere"):
        crash_matrix(Failing)


def test_a_class_that_no_other_process_can_find_is_refused():
    class Inner(Counting):
        pass

    with pytest.raises(ConformanceError, match=r"is made within a function.* Define it in a module, at its top level"):
        crash_matrix(Inner)


def test_a_kind_that_is_not_there_is_refused():
    with pytest.raises(ConformanceError) as caught:
        crash_matrix(Counting, kinds=["kill"])
    assert str(caught.value) == "crash_matrix.kinds: is no kind, got 'kill'. Use kills, faults, power cuts."


@WATCHED
def test_the_matrix_works_in_a_script_outside_this_repository(tmp_path):
    source = Path(__file__).read_text(encoding="utf-8")
    start, end = source.index("class CountingSettings"), source.index("class Forgetful")
    tmp_path.joinpath("script.py").write_text(
        "from trainer_core import Section\nfrom trainer_core.testing.crash import crash_matrix\n\n"
        + source[start:end]
        + "\nif __name__ == '__main__':\n    print(crash_matrix(Counting, kinds=['kills'], sample=2).kills)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr
