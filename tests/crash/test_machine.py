"""Random requests, failures, signals, kills, damage and resumes, each start compared with a model of the loop."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.crash.loop_model import Checkpoint, Start, without_digests
from tests.crash.scripted import LAST
from trainer_core.testing.crash import findings
from trainer_core.testing.crash.server import Ended, Job
from trainer_core.testing.crash.supervisor import Account, Plan

pytestmark = pytest.mark.usefixtures("sees_all_calls")

STEPS = st.integers(1, LAST)
ASKS = st.tuples(
    st.sampled_from(["ask for an evaluation", "ask for a save"]),
    st.sampled_from(["on_step_begin", "on_step_end", "on_evaluate"]),
    STEPS,
)
STOPS = st.tuples(st.just("ask for a stop"), st.sampled_from(["on_step_begin", "on_step_end", "on_evaluate"]), STEPS)
ENDS = st.tuples(
    st.sampled_from(["send SIGTERM", "fail", "kill"]),
    st.sampled_from(["on_step_begin", "on_step_end", "on_evaluate", "on_save"]),
    STEPS,
)
SCRIPTS = st.lists(ASKS, max_size=3, unique_by=lambda act: act[1:])


def told(ended):
    return [call.data.decode().strip() for call in ended.account.calls if call.name == "announce"]


class Machine(RuleBasedStateMachine):
    """A run in one folder, started again and again, and what the model knows of it.

    Attributes:
        possible: the checkpoints from which the next start may begin; one, where the last was not killed.
        is_over: whether the run has ended for good; None where a kill leaves that open.
    """

    server, bits, target = None, None, "tests.crash.scripted:run"

    @initialize(behind=st.booleans())
    def begin(self, behind):
        self.folder = Path(tempfile.mkdtemp(prefix="machine-")) / "run"
        self.options = {"checkpoint_async": behind}
        self.possible, self.known, self.is_over, self.outcome = [Checkpoint()], {0: Checkpoint()}, False, ""

    def teardown(self):
        shutil.rmtree(self.folder.parent)

    @rule(script=SCRIPTS)
    def runs_to_its_end(self, script):
        self.start(script)

    @rule(script=SCRIPTS, stop=STOPS)
    def is_stopped(self, script, stop):
        self.start([act for act in script if act[1:] != stop[1:]] + [stop])

    @rule(script=SCRIPTS, end=ENDS)
    def ends_in_a_hook(self, script, end):
        if self.options["checkpoint_async"] and end[1] == "on_save":
            return  # told at some later boundary
        self.start([act for act in script if act[1:] != end[1:]] + [end])

    @rule(script=SCRIPTS, at=st.integers(0, 250), action=st.sampled_from(["kill", "kill in the middle"]))
    def is_killed_at_a_call(self, script, at, action):
        self.start(script, Plan(action, at))

    @precondition(lambda self: self.is_over is False and len(self.possible) == 1)
    @rule(place=st.integers(0, 2**16), bit=st.integers(0, 7))
    def is_damaged(self, place, bit):
        *_, before, newest = [None, None, *findings.checkpoints(self.folder)]
        if before is None or any(findings.flaws(self.folder / name) for name in (before, newest)):
            return
        spoil(self.folder / newest, place, bit)
        self.possible = [self.known[findings.step_of(before)]]

    def start(self, script, plan=Plan()):  # noqa: B008 # frozen
        ended = self.server.run(Job(self.target, self.folder, {"script": script, **self.options}, plan))
        trace = told(ended)
        assert ended.account.ending != "hung", trace
        if ended.result is None and not trace:
            return  # killed before it began
        if self.is_over is not False and not trace:
            self.stays_over(ended)
            return
        assert self.is_over is not True, trace
        for line in trace:
            name, _, bits = line.rpartition(" ") if line.count(" ") == 2 else (line, "", "")
            assert bits == self.bits.get(name, bits), line
        began = [checkpoint for checkpoint in self.possible if trace[:1] == [f"begins {checkpoint.step}"]]
        assert began, (trace, self.possible, ended.error)
        self.follows(Start(began[0], script), ended, without_digests(trace))

    def follows(self, model, ended, trace):
        """Compares a start with the model, and notes from where the next may begin."""
        announced = [line for line in trace if line.startswith("saves")]
        expected = model.trace
        if self.options["checkpoint_async"]:  # saves are told later
            expected, trace = ([line for line in lines if line[:5] != "saves"] for lines in (expected, trace))
        self.known |= {checkpoint.step: checkpoint for checkpoint in model.saved}
        if ended.result is None:
            assert "the child died" in ended.error or not ended.error, ended.error
            assert trace == expected[: len(trace)]
            steps = [checkpoint.step for checkpoint in model.saved]
            first = steps.index(int(announced[-1].split()[1])) if announced else -1
            self.possible = [model.begin, *model.saved][first + 1 :]
            self.is_over = None if model.outcome in ("completed", "stopped") else False
        else:
            assert (trace, ended.result["did"]["outcome"]) == (expected, model.outcome), ended.error
            self.possible, self.is_over = [model.end], model.outcome in ("completed", "stopped")
            self.has_its_rows(ended.result["end"]["history"], model)
        self.outcome = model.outcome
        for name in findings.checkpoints(self.folder)[-1:]:
            assert ended.result is None or list(findings.flaws(self.folder / name)) == []

    def stays_over(self, ended):
        assert ended.error == ""
        did = ended.result["did"]
        assert (did["updates"], did["saves"], did["outcome"]) == ([], [], self.outcome)
        self.is_over = True

    def has_its_rows(self, history, model):
        """Each update was logged once, and each evaluation."""
        assert [row["step"] for row in history if "loss" in row] == list(range(1, model.step + 1))
        assert [row["step"] for row in history if "eval_loss" in row] == list(model.evaluated)


def spoil(checkpoint, place, bit):
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    file = files[place % len(files)]
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.unlink()  # a file that is linked belongs to other checkpoints too
    file.write_bytes(content)


@pytest.fixture(scope="module")
def bits(server, tmp_path_factory):
    """The bits of every step, and of an evaluation of it."""
    script = [("ask for an evaluation", "on_step_end", step) for step in range(1, LAST + 1)]
    folder = tmp_path_factory.mktemp("machine") / "plain"
    ended = server.run(Job("tests.crash.scripted:run", folder, {"script": script}))
    return {" ".join(line.split()[:2]): line.split()[2] for line in told(ended) if line.count(" ") == 2}


def drive(examples, phases=tuple(Phase), **members):
    """Tries sequences of starts; the same ones every time."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=8,
        phases=phases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(type("Machine", (Machine,), members), settings=chosen)


def test_every_start_does_what_the_model_of_the_loop_says(server, bits, more):
    assert len(bits) == 2 * LAST
    drive(12 + more // 10, server=server, bits=bits)


def test_a_weight_that_does_not_come_back_is_found(server, bits):
    with pytest.raises(AssertionError, match=r"^step "):
        drive(12, [Phase.generate], server=server, bits=bits, target="tests.crash.scripted:forgetful")


def test_a_start_that_hangs_is_found():
    class Hanging:
        def run(self, job):
            return Ended(Account(ending="hung"))

    with pytest.raises(AssertionError, match="'hung'"):
        drive(1, [Phase.generate], server=Hanging(), bits={})
