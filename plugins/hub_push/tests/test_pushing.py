"""Whole runs that push to a Hub on this machine."""

import logging
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from trainer_core import PluginError, SettingsError, Signal, TrainerCallback, write_model
from trainer_core.__main__ import main
from trainer_core.testing import PluginConformance
from trainer_core_hub_push import HubPush, HubPushSettings
from trainer_core_hub_push.entries import files_in
from trainer_core_hub_push.outbox import Outbox
from trainer_core_hub_push.pusher import Pusher

REPO = "user/first"
TIRELESS = {"retries": 100_000}
LONG_SECONDS = 3600
"""Longer than any test may take; a Hub that is stopped waits no longer."""
OF_A_CHECKPOINT = [
    "log_history.jsonl",
    "manifest.json",
    "model.safetensors",
    "rank-00000.json",
    "rank-00000.safetensors",
    "state.json",
    "state.safetensors",
]


class PowerCut(BaseException):
    """Ends a run at once: nothing more is saved."""


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level(logging.WARNING, "trainer_core.hub_push")


class Keep:
    """A plugin that keeps a copy of each checkpoint, as it was when it was saved, and of the model at the end."""

    before = ("hub_push",)

    def __init__(self, folder):
        self.folder, self.begun = folder, 0

    def on_save(self, trainer, checkpoint):
        shutil.copytree(checkpoint, self.folder / checkpoint.name)

    def on_push_begin(self, trainer):
        self.begun += 1

    def on_train_end(self, trainer):
        write_model(trainer.model, self.folder / "end")

    def files(self, name):
        return {file: (self.folder / name / file).read_bytes() for file in files_in(self.folder / name)}


@pytest.fixture
def keep(tmp_path):
    return Keep(tmp_path / "kept")


def titles(hub, repo=REPO, revision="main"):
    """Gives the titles of commits, oldest first, without that of the making."""
    return [commit.title for commit in reversed(hub.repo(repo).commits(revision))][1:]


def of_folder(hub, folder, repo=REPO):
    files = hub.repo(repo).files()
    return {name.removeprefix(f"{folder}/"): data for name, data in files.items() if name.startswith(f"{folder}/")}


def left(tmp_path):
    return [entry.push.message for entry in Outbox(tmp_path / "first").entries()]


def pushes(output):
    return {name: value for name, value in output.metrics.items() if name.startswith("pushes_")}


# What is pushed, and when


def saves(*steps):
    return [f"Training in progress, step {step}" for step in steps]


@pytest.mark.parametrize(
    ("strategy", "expected", "folders"),
    [
        ("end", [], set()),
        ("every_save", saves(8, 16, 24), set()),
        (
            "checkpoint",
            [title for save in saves(8, 16, 24) for title in (save, f"{save}, checkpoint")],
            {"last-checkpoint"},
        ),
        (
            "all_checkpoints",
            [title for save in saves(8, 16, 24) for title in (save, f"{save}, checkpoint")],
            {"checkpoint-8", "checkpoint-16", "checkpoint-24"},
        ),
    ],
)
def test_each_strategy_pushes_what_it_says(hub, make, keep, tmp_path, strategy, expected, folders):
    output = make(keep, hub_strategy=strategy, hub_always_push=True).train()
    assert titles(hub) == [*expected, "End of training"]
    files = hub.repo(REPO).files()
    assert {name.partition("/")[0] for name in files if "/" in name} == folders
    assert {name for name in files if "/" not in name} == {".gitattributes", "README.md", "model.safetensors"}
    for folder in folders:
        local = "checkpoint-24" if folder == "last-checkpoint" else folder
        assert of_folder(hub, folder) == keep.files(local)
        assert sorted(of_folder(hub, folder)) == OF_A_CHECKPOINT
    assert files["model.safetensors"] == keep.files("end")["model.safetensors"]
    assert pushes(output) == {"pushes_done": len(expected) + 1, "pushes_replaced": 0, "pushes_failed": 0}
    assert left(tmp_path) == []
    assert keep.begun == (0 if strategy == "end" else 3) + 1


def test_commits_of_saves_by_epoch_name_the_epoch(hub, make):
    make(save_strategy="epoch", hub_always_push=True).train()
    assert titles(hub) == ["Training in progress, epoch 1", "Training in progress, epoch 2", "End of training"]


def test_the_model_on_the_hub_is_that_of_the_run(hub, make, tmp_path, api):
    trainer = make()
    trainer.train()
    from safetensors.torch import load

    pushed = load(hub.repo(REPO).files()["model.safetensors"])
    assert all(torch.equal(pushed[name], tensor) for name, tensor in trainer.model.state_dict().items())
    card = hub.repo(REPO).files()["README.md"]
    assert card == (tmp_path / "first" / "README.md").read_bytes()
    assert hub.repo(REPO).files()["model.safetensors"] == (tmp_path / "first" / "model.safetensors").read_bytes()


class Recover:
    """A plugin with whose hook the Hub is in order again, when everything is queued."""

    after = ("hub_push",)

    def __init__(self, hub):
        self.hub = hub

    def on_train_end(self, trainer):
        self.hub.clear_faults()


@pytest.mark.parametrize("always", [False, True])
def test_a_busy_hub_gets_the_newest_and_everything_only_when_that_is_asked_for(hub, make, tmp_path, always):
    hub.delay = 0.005
    hub.fault("POST", r"/commit/", 503, times=None)
    options = {"hub_always_push": always, "hub_push": TIRELESS}
    output = make(Recover(hub), hub_strategy="checkpoint", save_steps=3, **options).train()
    found, every = titles(hub), [title for save in saves(*range(3, 25, 3)) for title in (save, f"{save}, checkpoint")]
    assert found[-1] == "End of training"
    assert "Training in progress, step 24, checkpoint" in found
    if always:
        assert found == [*every, "End of training"]
    else:
        assert len(found) < len(every)
        assert pushes(output)["pushes_replaced"] == len(every) + 1 - len(found)
    assert left(tmp_path) == []


def test_rotation_takes_nothing_from_what_is_queued(hub, make, keep, tmp_path):
    hub.delay = 0.02
    make(keep, hub_strategy="all_checkpoints", save_steps=4, save_total_limit=1, eval_strategy="no").train()
    assert [path.name for path in (tmp_path / "first").glob("checkpoint-*")] == ["checkpoint-24"]
    for step in range(4, 25, 4):
        assert of_folder(hub, f"checkpoint-{step}") == keep.files(f"checkpoint-{step}")


def test_files_of_the_last_checkpoint_that_are_gone_are_deleted_with_it(hub, make, keep):
    hub.create(REPO)
    hub.commit(REPO, {"last-checkpoint/rank-00001.json": b"{}", "notes.txt": b"mine"}, message="before")
    hub.commit(REPO, {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}"}, message="old")
    make(keep, hub_strategy="checkpoint").train()
    assert of_folder(hub, "last-checkpoint") == keep.files("checkpoint-24")
    assert {name for name in hub.repo(REPO).files() if "/" not in name} == {
        ".gitattributes",
        "README.md",
        "model.safetensors",
        "notes.txt",
    }


def test_branch_and_privacy_are_those_of_the_settings(hub, make):
    make(hub_revision="trial", hub_private_repo=True, hub_model_id="team/mine", hub_strategy="end").train()
    repository = hub.repo("team/mine")
    assert repository.private
    assert "model.safetensors" in repository.files("trial")
    assert "model.safetensors" not in repository.files("main")


def test_a_run_says_once_that_its_repository_is_public_and_goes_on(hub, make, caplog):
    hub.create(REPO)
    trainer = make(hub_private_repo=True)
    trainer.train()
    trainer.push_to_hub()
    assert [message for message in caplog.messages if "is public already" in message] == [
        f"{REPO}: is public already and stays so, private=True holds for a repository that is made. "
        f"Change it at {hub.endpoint}/{REPO}/settings."
    ]
    assert not hub.repo(REPO).private


def test_a_run_without_push_to_hub_asks_the_hub_for_nothing(hub, make, tmp_path):
    output = make(push_to_hub=False).train()
    assert hub.requests == []
    assert not (tmp_path / "first" / ".outbox").exists()
    assert pushes(output) == {}


def test_an_interrupted_run_pushes_its_saves_and_no_end(hub, make):
    class Cut:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 10:
                trainer.request(Signal.SAVE, by="cut", why="the test says so")
                trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)

    make(Cut(), hub_always_push=True).train()
    assert titles(hub) == saves(8, 10)


# Before training


def test_a_plan_says_what_will_be_pushed_and_asks_the_hub_for_nothing(hub, make):
    trainer = make(hub_model_id="team/mine")
    (entry,) = [entry for entry in trainer.plan().scheduled if entry.what == "push"]
    assert (entry.by, entry.steps, entry.note) == ("hub_strategy", [8, 16, 24], "to team/mine")
    (entry,) = [entry for entry in make(hub_strategy="end").plan().scheduled if entry.what == "push"]
    assert entry.steps == [24]
    best = make(save_strategy="best")
    (entry,) = [entry for entry in best.plan().scheduled if entry.what == "push"]
    assert entry.steps is None
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"hub_token": None}, "hub_token: is needed to push, got None. "),
        ({"hub_token": "hf_reader"}, "hub_token: may only read from the Hub, got a token of role 'read'. "),
        ({"hub_token": "hf_unknown"}, "hub_token: the Hub does not know it, got "),
        ({"hub_model_id": "elsewhere/first"}, "hub_model_id: the Hub refuses 'elsewhere/first', got "),
    ],
)
def test_what_the_hub_refuses_ends_the_run_before_its_first_update(make, options, problem):
    trainer = make(**options)
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    (told,) = caught.value.problems
    assert told.startswith(problem)
    assert ".." not in told
    assert trainer.state.global_step == 0
    assert str(options.get("hub_token", "hf_writer")) not in str(caught.value) or options["hub_token"] is None


def test_a_run_that_is_refused_for_another_reason_makes_no_repository(hub, make):
    class Contrary:
        def on_plan(self, plan):
            plan.contradict("contrary: says no. Say yes.")

    with pytest.raises(SettingsError, match="contrary"):
        make(Contrary()).train()
    assert hub.requests == []


def test_saves_that_nobody_writes_are_refused(hub, make):
    with pytest.raises(SettingsError) as caught:
        make(checkpointing=None).train()
    assert caught.value.problems == [
        "hub_strategy: needs saves, and no plugin writes checkpoints, got 'every_save'. "
        "Turn checkpointing on, or set hub_strategy='end'."
    ]
    assert hub.requests == []


def test_a_hub_that_is_away_at_the_start_is_said_and_gets_everything_later(hub, make, caplog, tmp_path):
    class Return:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 20:
                hub.start()

    hub.stop()
    make(Return(), hub_strategy="all_checkpoints", hub_push={"retries": 100}).train()
    assert caplog.messages[0].startswith("the Hub cannot be asked, ")
    assert caplog.messages[0].endswith(". Pushes are queued and tried again.")
    assert titles(hub)[-1] == "End of training"
    assert {name.partition("/")[0] for name in hub.repo(REPO).files() if "/" in name} == {
        "checkpoint-8",
        "checkpoint-16",
        "checkpoint-24",
    }
    assert left(tmp_path) == []


# Failures


def test_a_hub_that_stays_away_fails_no_run_and_is_told_everywhere(hub, make, caplog, tmp_path):
    hub.stop()
    trainer = make(hub_strategy="checkpoint", hub_push={"retries": 1})
    output = trainer.train()
    assert output.global_step == 24
    folder = tmp_path / "first"
    assert left(tmp_path) == ["Training in progress, step 24, checkpoint", "End of training"]
    assert pushes(output)["pushes_failed"] == 2
    remedy = f"It is kept, `python -m trainer_core push {folder}` pushes it."
    assert caplog.messages[-1].startswith("2 pushes did not arrive, ")
    assert caplog.messages[-1].endswith(remedy)
    notes = dict(trainer.bus.members["hub_push"].plugin.closing_notes())
    assert notes["not pushed"] == caplog.messages[-1]


def test_the_summary_says_what_was_pushed_and_what_was_not(hub, make, capsys, tmp_path, monkeypatch):
    from trainer_core.testing import only

    with only("hub_push", "checkpointing", "console"):
        make(hub_strategy="end").train()
        hub.stop()
        make(hub_strategy="end", hub_push={"retries": 0}).train()
    good, _, bad = capsys.readouterr().out.partition("Training TinyModel")[2].partition("Training TinyModel")
    assert f"pushed      1, the last is {hub.endpoint}/user/first/commit/" in good
    assert "not pushed" not in good
    assert "not pushed  1 push did not arrive, " in bad
    assert "python -m trainer_core push" in bad


def test_what_cannot_be_queued_fails_no_run_and_is_counted(hub, make, caplog, monkeypatch):
    def full(self, push, files):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Outbox, "add", full)
    trainer = make()
    output = trainer.train()
    assert titles(hub) == ["End of training"]
    assert pushes(output) == {"pushes_done": 1, "pushes_replaced": 0, "pushes_failed": 3}
    told = [f"checkpoint-{step} of step {step}: OSError: [Errno 28] No space left on device" for step in (8, 16, 24)]
    assert caplog.messages == [f"{one}. The run goes on." for one in told]
    notes = list(trainer.bus.members["hub_push"].plugin.closing_notes())
    assert [text for label, text in notes if label == "not pushed"] == told


def test_a_model_that_cannot_be_written_at_the_end_fails_no_run(hub, make, caplog):
    trainer = make(hub_strategy="end", save_strategy="no")

    def fail(folder=None):
        raise OSError(28, "No space left on device")

    trainer.save_model = fail
    output = trainer.train()
    assert pushes(output) == {"pushes_done": 0, "pushes_replaced": 0, "pushes_failed": 1}
    assert caplog.messages == ["the model of step 24: OSError: [Errno 28] No space left on device. The run goes on."]


def test_an_outbox_that_cannot_be_made_fails_no_run_but_the_push_that_was_asked_for(hub, make, caplog, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / ".outbox").write_text("somebody's file")
    trainer = make()
    output = trainer.train()
    assert output.global_step == 24
    assert pushes(output) == {"pushes_done": 0, "pushes_replaced": 0, "pushes_failed": 4}
    assert [message.partition(": ")[0] for message in caplog.messages] == [
        *(f"checkpoint-{step} of step {step}" for step in (8, 16, 24)),
        "the model of step 24",
    ]
    with pytest.raises(FileExistsError):
        trainer.push_to_hub()


def test_an_outbox_that_is_a_link_fails_no_run_but_the_push_that_was_asked_for(hub, make, caplog, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / ".outbox").symlink_to(tmp_path / "mine")
    trainer = make(hub_strategy="end")
    assert trainer.train().global_step == 24
    told = f"{tmp_path}/first/.outbox: is a link, and no outbox of trainer_core is one. Put the folder itself there"
    assert f"the model of step 24: PluginError: {told}, or remove the link. The run goes on." in caplog.messages
    with pytest.raises(PluginError, match=told):
        trainer.push_to_hub()
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_outbox_that_cannot_be_read_fails_no_run_and_is_told(hub, make, caplog, monkeypatch):
    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Outbox, "entries", fail)
    trainer = make(hub_strategy="end")
    output = trainer.train()
    assert output.global_step == 24
    assert pushes(output) == {"pushes_done": 0, "pushes_replaced": 0, "pushes_failed": 1}
    told = "the outbox: cannot be read, OSError: [Errno 5] Input/output error"
    assert caplog.messages.count(f"{told}. The run goes on.") == 1
    assert dict(trainer.bus.members["hub_push"].plugin.closing_notes()) == {"not pushed": told}


def test_a_card_that_cannot_be_written_keeps_no_model_back(hub, make, caplog, monkeypatch):
    def fail(*args):
        raise ValueError("no card today")

    monkeypatch.setattr("trainer_core_hub_push.pusher.write_card", fail)
    make(hub_strategy="end").train()
    assert titles(hub) == ["End of training"]
    assert caplog.messages == [
        "the model card: cannot be written, ValueError: no card today. The model is pushed without it."
    ]


def test_the_end_waits_no_longer_than_the_settings_say(hub, make, caplog, tmp_path):
    hub.fault("POST", r"/commit/", "delay", seconds=LONG_SECONDS)
    trainer = make(hub_strategy="end", hub_push={"flush_timeout_seconds": 0.2, "retries": 100_000})
    output = trainer.train()
    assert pushes(output)["pushes_failed"] == 1
    assert "1 push did not arrive. It is kept" in caplog.messages[-1]
    hub.clear_faults()  # it may not have come to the commit yet
    hub.stop()
    hub.start()
    assert trainer.push_to_hub() is not None
    assert titles(hub) == ["End of training"]
    assert left(tmp_path) == []


def test_a_long_wait_at_the_end_is_said(hub, make, caplog, monkeypatch):
    in_words = Pusher._waiting_in_words

    def recover(self):
        hub.clear_faults()
        return in_words(self)

    monkeypatch.setattr("trainer_core_hub_push.pusher.SAY_EVERY_SECONDS", 0.2)
    monkeypatch.setattr(Pusher, "_waiting_in_words", recover)
    hub.fault("POST", r"/commit/", 503, times=None)
    make(hub_strategy="end", hub_push=TIRELESS).train()
    told = [message for message in caplog.messages if message.startswith("waiting for 1 push of 0.0 MB, ")]
    assert told
    assert told[0].endswith(" s more at most.")


def test_a_run_that_failed_waits_for_little(hub, make, monkeypatch, tmp_path):
    class Fail:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 10:
                raise PowerCut

    monkeypatch.setattr("trainer_core_hub_push.plugin.GRACE_SECONDS", 0.1)
    hub.fault("POST", r"/commit/", "delay", seconds=LONG_SECONDS)
    with pytest.raises(PowerCut):
        make(Fail()).train()
    assert left(tmp_path) == ["Training in progress, step 8"]


def test_an_interrupt_ends_the_waiting_and_what_is_left_is_said(hub, make, caplog, monkeypatch, tmp_path):
    def interrupt(self, seconds):
        raise KeyboardInterrupt

    hub.fault("POST", r"/commit/", "delay", seconds=LONG_SECONDS)
    trainer = make(hub_strategy="end")
    with monkeypatch.context() as patch:
        patch.setattr("trainer_core_hub_push.uploading.Uploader.wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert "1 push did not arrive. It is kept" in caplog.messages[-1]
    assert left(tmp_path) == ["End of training"]


@pytest.mark.parametrize(
    ("outcome", "world_size", "seconds"),
    [
        ("completed", 1, 600),
        ("stopped", 1, 600),
        ("interrupted", 1, 10),
        ("failed", 1, 10),
        ("completed", 2, 60),
        ("failed", 2, 10),
    ],
)
def test_the_end_waits_less_where_others_wait_too(outcome, world_size, seconds):
    trainer = SimpleNamespace(
        outcome=outcome, ranks=SimpleNamespace(world_size=world_size), args=SimpleNamespace(ddp_timeout=120)
    )
    assert HubPush(HubPushSettings(push=True))._seconds_to_wait(trainer) == seconds


def test_what_a_run_left_is_pushed_by_the_next_one_in_its_folder(hub, make, keep, caplog, tmp_path):
    hub.fault("POST", r"/commit/", 503, times=None)

    class Fail:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 10:
                raise PowerCut

    with pytest.raises(PowerCut):
        make(keep, Fail(), hub_strategy="all_checkpoints", hub_push={"retries": 0}).train()
    assert left(tmp_path) == ["Training in progress, step 8", "Training in progress, step 8, checkpoint"]
    hub.clear_faults()
    make(keep, hub_strategy="all_checkpoints").train(resume_from_checkpoint=True)
    assert f"{tmp_path}/first/.outbox: holds 2 pushes of an earlier run; they go first." in caplog.messages
    for step in (8, 16, 24):
        assert of_folder(hub, f"checkpoint-{step}") == keep.files(f"checkpoint-{step}")
    assert left(tmp_path) == []


def test_a_damaged_push_is_said_once_a_run(hub, make, caplog, tmp_path):
    damaged = tmp_path / "first" / ".outbox" / f"00000001-{'0' * 32}"
    damaged.mkdir(parents=True)
    (damaged / "entry.json").write_text("{")
    trainer = make()
    for number in (1, 2):
        trainer.train()
        assert len([message for message in caplog.messages if "is damaged" in message]) == number


def test_pushing_changes_no_number_of_a_run(hub, make, tmp_path):
    def outcome(**options):
        trainer = make(save_strategy="steps", **options)
        trainer.train()
        shutil.rmtree(tmp_path / "first")
        rows = [
            {k: v for k, v in row.items() if "runtime" not in k and "second" not in k}
            for row in trainer.state.log_history
        ]
        return rows, {name: tensor.tolist() for name, tensor in trainer.model.state_dict().items()}

    hub.fault("POST", r"/commit/", 503, times=3)
    assert outcome(hub_strategy="checkpoint", save_steps=2) == outcome(push_to_hub=False, save_steps=2)


# What is asked for


@pytest.mark.parametrize("trained", [False, True])
def test_a_model_is_pushed_when_that_is_asked_for(hub, make, tmp_path, trained):
    trainer = make(push_to_hub=False, save_strategy="no")
    if trained:
        trainer.train()
    commit = trainer.push_to_hub()
    assert commit.commit_url == f"{hub.endpoint}/user/first/commit/{hub.repo(REPO).commits()[0].id}"
    assert titles(hub) == ["End of training"]
    files = hub.repo(REPO).files()
    assert sorted(files) == [".gitattributes", "README.md", "model.safetensors"]
    assert files["model.safetensors"] == (tmp_path / "first" / "model.safetensors").read_bytes()
    assert left(tmp_path) == []


def test_a_push_can_be_waited_for(hub, make):
    hub.fault("POST", r"/commit/", 503, times=None)
    trainer = make(push_to_hub=False, save_strategy="no", hub_push=TIRELESS)
    future = trainer.push_to_hub("first try", blocking=False, tags=["mine"])
    assert not future.done()
    hub.clear_faults()
    assert future.result(60).oid == hub.repo(REPO).commits()[0].id
    assert titles(hub) == ["first try"]
    assert b"- mine" in hub.repo(REPO).files()["README.md"]


def test_a_push_takes_token_branch_and_privacy_of_its_own(hub, make):
    trainer = make(push_to_hub=False, save_strategy="no", hub_token="hf_reader")
    trainer.push_to_hub(token="hf_other", revision="trial", private=True)
    repository = hub.repo("other/first")
    assert repository.private
    assert "model.safetensors" in repository.files("trial")


def test_a_push_that_the_hub_refuses_raises_before_anything_is_saved(hub, make, tmp_path):
    trainer = make(push_to_hub=False, save_strategy="no", hub_token="hf_reader")
    with pytest.raises(PluginError, match="hub_token: may only read from the Hub"):
        trainer.push_to_hub()
    assert not (tmp_path / "first" / "model.safetensors").exists()


def test_an_option_that_no_card_has_is_refused_before_anything_is_saved(hub, make, tmp_path):
    trainer = make(push_to_hub=False, save_strategy="no")
    with pytest.raises(TypeError, match=r"licens is no option\. Did you mean 'license'\?"):
        trainer.push_to_hub(licens="mit")
    assert hub.requests == []
    assert not (tmp_path / "first" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        *(
            (
                {"commit_message": title},
                f"push_to_hub.commit_message: must be text that is not blank, got {title!r}. "
                "Give the title of the commit, such as 'End of training'.",
            )
            for title in ("", None, " \n", 5)
        ),
        *(
            ({"private": value}, f"push_to_hub.private: must be True, False or None, got {value!r}. Use one of these.")
            for value in ("yes", 1)
        ),
        *(
            (
                {"revision": name},
                f"push_to_hub.revision: is no name of a branch, got {name!r}. "
                "Write it as git takes it, such as 'main'.",
            )
            for name in ("", "my branch", "a..b", 5)
        ),
    ],
)
def test_a_wrong_argument_of_a_push_is_refused_before_anything_is_saved(hub, make, tmp_path, options, told):
    trainer = make(push_to_hub=False, save_strategy="no")
    with pytest.raises(PluginError) as caught:
        trainer.push_to_hub(**options)
    assert str(caught.value) == told
    assert hub.requests == []
    assert not (tmp_path / "first" / "model.safetensors").exists()


def test_arguments_of_a_push_that_are_none_are_as_not_given(hub, make):
    make(push_to_hub=False, save_strategy="no").push_to_hub(private=None, revision=None, token=None)
    assert titles(hub) == ["End of training"]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_push_that_does_not_arrive_raises_and_is_kept(hub, make, tmp_path, monkeypatch, capsys, blocking):
    trainer = make(push_to_hub=False, save_strategy="no", hub_push={"retries": 1})
    hub.stop()
    told = r"push_to_hub: did not arrive, got .* It is kept, `python -m trainer_core push .*` pushes it\."
    with pytest.raises(PluginError, match=told):
        trainer.push_to_hub() if blocking else trainer.push_to_hub(blocking=False).result(60)
    assert left(tmp_path) == ["End of training"]
    hub.start()
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert main(["push", str(tmp_path / "first")]) == 0
    assert titles(hub) == ["End of training"]


def test_the_users_own_save_model_makes_what_is_pushed(hub, make, tmp_path):
    def save(folder=None):
        write_model(trainer.model, folder)
        (folder / "mine").mkdir()
        (folder / "mine" / "notes.txt").write_text("notes")

    trainer = make(push_to_hub=False, save_strategy="no")
    trainer.save_model = save
    trainer.push_to_hub()
    assert hub.repo(REPO).files()["mine/notes.txt"] == b"notes"
    assert (tmp_path / "first" / "mine" / "notes.txt").read_text() == "notes"


def test_a_card_is_written_without_pushing(hub, make, tmp_path):
    trainer = make(push_to_hub=False, save_strategy="no")
    card = trainer.create_model_card(license="mit")
    assert card == tmp_path / "first" / "README.md"
    assert "license: mit" in card.read_text()
    assert hub.requests == []


class TestDefaults(PluginConformance):
    plugin_type = HubPush


HUB = """
import sys
from trainer_core_hub_push.loopback import LoopbackHub
with LoopbackHub({"hf_writer": "user"}) as hub:
    print(hub.endpoint, flush=True)
    sys.stdin.read()
"""


class TestWithAHub(PluginConformance):
    plugin_type = HubPush
    flat: ClassVar = {"push_to_hub": True, "hub_strategy": "end", "hub_model_id": "user/first"}

    @pytest.fixture(autouse=True)
    def in_another_process(self, monkeypatch):
        """A Hub whose threads are not this process's."""
        child = subprocess.Popen([sys.executable, "-c", HUB], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        monkeypatch.setenv("HF_ENDPOINT", child.stdout.readline().strip())
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield
        child.communicate()


class Hearing(TrainerCallback):
    """Notes the pushes in the guide's form."""

    def __init__(self):
        self.steps = []

    def on_push_begin(self, args, state, control, model=None, **kwargs):
        assert model is not None
        self.steps.append(state.global_step)


def test_a_callback_hears_of_every_push_before_it_begins(hub, make):
    trainer, hearing = make(), Hearing()
    trainer.add_callback(hearing)
    trainer.train()
    assert hearing.steps == [8, 16, 24, 24]
    trainer.push_to_hub("once more")
    assert hearing.steps == [8, 16, 24, 24, 24]
