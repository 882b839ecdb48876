import os
import pty
import subprocess
import sys

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class

from trainer_core_trackers.reporter import in_words


class Recording(GeneralTracker):
    name = "recording"
    requires_logging_directory = False
    calls: list  # of the class: every run has an instance of its own
    fails_in: frozenset

    def __init__(self, project):
        super().__init__()
        self.project = project

    @property
    def tracker(self):
        return self

    def _note(self, what, value=None):
        self.calls.append((what, value))
        if what in self.fails_in:
            raise ConnectionError(f"{what} is down")

    def start(self):
        self._note("start", self.project)

    def store_init_configuration(self, values):
        self._note("settings", sorted(values)[:1])

    def log(self, values, step=None):
        self._note("log", step)

    def finish(self):
        self._note("finish")


@pytest.fixture
def recording():
    """Gives a function that registers a tracker which fails in some calls; gives its list of calls."""
    names = []

    def register(name, *fails_in):
        kind = type(name, (Recording,), {"name": name, "calls": [], "fails_in": frozenset(fails_in)})
        register_tracker_class(kind)
        names.append(name)
        return kind.calls

    yield register
    for name in names:
        del LOGGER_TYPE_TO_CLASS[name]


LOGS = [("log", step) for step in (5, 10, 12, 15, 20, 24, 24)]
WHOLE = [("start", "huggingface"), ("settings", ["activation_checkpointing"]), *LOGS, ("finish", None)]


def test_one_tracker_that_fails_silences_neither_the_others_nor_itself(trainer_of, recording, warnings_of, tmp_path):
    broken, sound = recording("broken", "log"), recording("sound")
    trainer = trainer_of(tmp_path, report_to=["broken", "sound"])
    trainer.train()
    assert trainer.outcome == "completed"
    assert sound == WHOLE
    assert broken == [*WHOLE[:5], ("finish", None)]
    failed = "report_to: broken failed in reporting ({} of 3), got ConnectionError: log is down. The run goes on."
    off = "report_to: broken is switched off for this run after 3 failures."
    assert warnings_of() == [failed.format(1), failed.format(2), failed.format(3), off]


def test_a_tracker_that_was_switched_off_is_asked_again_in_the_next_run(trainer_of, recording, tmp_path):
    broken = recording("broken", "log")
    trainer = trainer_of(tmp_path, report_to="broken")
    trainer.train()
    trainer.train()
    assert [what for what, _ in broken] == ["start", "settings", "log", "log", "log", "finish"] * 2


@pytest.mark.parametrize(
    ("where", "calls", "told"),
    [
        ("start", WHOLE[:1], "report_to: broken cannot be started, got ConnectionError: start is down. The run goes on "
                             "without it."),
        ("settings", WHOLE, "report_to: broken failed in storing settings (1 of 3), got ConnectionError: settings is "
                            "down. The run goes on."),
        ("finish", WHOLE, "report_to: broken failed in closing (1 of 3), got ConnectionError: finish is down. The run "
                          "goes on."),
    ],
)  # fmt: skip
def test_a_tracker_may_fail_anywhere(trainer_of, recording, warnings_of, tmp_path, where, calls, told):
    broken, sound = recording("broken", where), recording("sound")
    trainer_of(tmp_path, report_to=["broken", "sound"]).train()
    assert (broken, sound) == (calls, WHOLE)
    assert warnings_of() == [told]


def test_a_token_in_an_error_reaches_neither_log_nor_tracker():
    assert in_words(ConnectionError(f"refused\n  hf_{'a1' * 17}")) == "ConnectionError: refused ***"


def test_trackers_are_closed_when_a_run_fails(failing, recording, tmp_path):
    calls = recording("sound")
    failing(tmp_path, 7, report_to="sound", project="mine")
    assert calls == [("start", "mine"), WHOLE[1], ("log", 5), ("finish", None)]


def test_a_tracker_that_cannot_open_a_run_again_gets_no_row_outside_training(
    trainer_of, recording, warnings_of, tmp_path
):
    calls = recording("sound")
    trainer = trainer_of(tmp_path, report_to="sound")
    trainer.evaluate()
    trainer.evaluate()
    assert calls == []
    assert warnings_of() == ["report_to: rows outside training do not reach sound, which cannot open a run again."]


def test_a_tracker_that_is_gone_when_training_begins_is_refused(trainer_of, recording, tmp_path):
    recording("sound")
    trainer = trainer_of(tmp_path, report_to="sound")
    kind = LOGGER_TYPE_TO_CLASS.pop("sound")
    assert trainer.plan().contradictions == [
        "report_to: nothing is registered in accelerate.tracking as 'sound'. Register its class there."
    ]
    LOGGER_TYPE_TO_CLASS["sound"] = kind


def test_an_evaluation_is_not_ended_by_a_tracker_that_is_not_installed(trainer_of, warnings_of, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer_core_trackers.known.find_spec", lambda name: None)
    trainer = trainer_of(tmp_path, report_to="tensorboard")
    assert trainer.evaluate()["eval_loss"] > 0
    assert warnings_of() == ["report_to: 'tensorboard' is not installed. Install it: pip install tensorboard."]


LOGIN = """
import torch; torch.set_num_threads(1)
from trainer_core.testing import run
trainer = run(installed=["trackers", "logging"], report_to="wandb", max_steps=2)
print("outcome", trainer.outcome)
"""


@pytest.mark.slow
def test_weights_and_biases_never_asks_for_a_login(tmp_path):
    """It would ask on a terminal, and this is one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment = kept | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "OMP_NUM_THREADS": "1"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LOGIN], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path
    )
    os.close(theirs)
    told = ""
    while True:
        try:
            told += os.read(ours, 65536).decode()
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert process.wait(120) == 0
    lines = [line for line in told.splitlines() if line.strip()]
    assert lines == [
        "WARNING trainer_core.trackers: report_to: wandb cannot be started, got TrackerError: not logged in. Set "
        "WANDB_API_KEY, run `wandb login` once, or set WANDB_MODE=offline. The run goes on without it.",
        "outcome completed",
    ]
