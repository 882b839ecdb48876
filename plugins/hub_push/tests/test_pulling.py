"""Resuming from a repository: which checkpoint is meant, that it arrives, and what is said when it does not."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer_core import CheckpointError, Signal, Trainer, TrainingArguments
from trainer_core.testing import tiny_dataset, tiny_model
from trainer_core_hub_push import pulling
from trainer_core_hub_push.client import hub_api
from trainer_core_hub_push.pulling import Source, fetch_checkpoint, read_source

REPO = "user/thing"
SCRIPT = Path(__file__).with_name("pulling_script.py")
TINY = {"manifest.json": b"{}", "model.safetensors": b"weights", "empty.txt": b""}


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """The waits between tries, cut."""
    waits = []
    monkeypatch.setattr(pulling.time, "sleep", waits.append)
    return waits


@pytest.fixture
def fetch(tmp_path):
    """Gives a function that pulls as a run in tmp_path/out would."""
    ranks = SimpleNamespace(from_main=lambda value: value)
    trainer = SimpleNamespace(is_main_rank=True, ranks=ranks, args=SimpleNamespace(output_dir=str(tmp_path / "out")))
    return lambda source, token="hf_writer": fetch_checkpoint(trainer, source, token=token)


def holding(hub, *folders, repo=REPO):
    """Makes a repository with tiny folders that look like checkpoints."""
    hub.create(repo)
    files = {f"{folder}/{name}" if folder else name: data for folder in folders for name, data in TINY.items()}
    return hub.commit(repo, files)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refusal(fetch, source, **options):
    with pytest.raises(CheckpointError) as caught:
        fetch(source, **options)
    return str(caught.value)


# What a name means


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("user/repo", Source("user/repo")),
        ("user/repo@main", Source("user/repo", "", "main")),
        ("user/repo@refs/pr/1", Source("user/repo", "", "refs/pr/1")),
        ("user/repo/checkpoint-4", Source("user/repo", "checkpoint-4")),
        ("u-s.er/re_po/a/b@v1.0", Source("u-s.er/re_po", "a/b", "v1.0")),
        ("checkpoint-4", None),
        ("/user/repo", None),
        ("./user/repo", None),
        ("../repo", None),
        ("user/repo/../x", None),
        ("user/repo/", None),
        ("user//repo", None),
        ("~/repo", None),
        ("user/repo@", None),
        ("user\\repo", None),
        ("C:/repo", None),
        ("a b/c", None),
        ("", None),
    ],
)
def test_a_text_names_a_repository_or_none(text, source):
    assert read_source(text) == source
    assert source is None or str(source) == text


@pytest.mark.parametrize(
    ("folders", "source", "name"),
    [
        (["checkpoint-9", "last-checkpoint", "checkpoint-10"], REPO, "last-checkpoint"),
        (["checkpoint-9", "checkpoint-10", "checkpoint-x"], REPO, "checkpoint-10"),
        (["checkpoint-9", "last-checkpoint"], f"{REPO}/checkpoint-9", "checkpoint-9"),
        (["runs/a/checkpoint-9"], f"{REPO}/runs/a/checkpoint-9", "checkpoint-9"),
        (["odd[1]*"], f"{REPO}/odd[1]*", "odd[1]*"),
    ],
)
def test_the_checkpoint_that_is_meant_arrives_whole_and_alone(hub, fetch, tmp_path, folders, source, name):
    commit = holding(hub, *folders)
    found = fetch(source)
    home = tmp_path / "out" / ".pulled" / "user--thing" / commit.id[:12]
    assert found.name == name
    assert home in found.parents
    assert contents(found) == TINY
    assert {path.name for path in home.iterdir()} == {".cache", found.relative_to(home).parts[0]}
    assert [path for path in home.rglob("*") if path.is_symlink()] == []


def test_a_repository_may_be_a_checkpoint_itself(hub, fetch):
    commit = holding(hub, "")
    assert contents(fetch(REPO)) == TINY
    assert fetch(REPO).name == commit.id[:12]


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, api, fetch):
    first = holding(hub, "last-checkpoint")
    api.create_tag(REPO, tag="v1")
    hub.commit(REPO, {"last-checkpoint/model.safetensors": b"newer"})
    api.create_branch(REPO, branch="b/c", revision="v1")
    for revision in ("v1", "b/c", first.id, first.id[:8]):
        assert (fetch(f"{REPO}@{revision}") / "model.safetensors").read_bytes() == b"weights"
    assert (fetch(f"{REPO}@main") / "model.safetensors").read_bytes() == b"newer"


def test_what_was_pulled_before_makes_room(hub, fetch, tmp_path):
    holding(hub, "last-checkpoint")
    fetch(REPO)
    newer = hub.commit(REPO, {"last-checkpoint/model.safetensors": b"newer"})
    fetch(REPO)
    assert [path.name for path in (tmp_path / "out" / ".pulled" / "user--thing").iterdir()] == [newer.id[:12]]


def test_what_is_here_already_is_not_pulled_again(hub, fetch):
    holding(hub, "last-checkpoint")
    fetch(REPO)
    before = hub.count("GET", "/resolve/")
    fetch(REPO)
    assert hub.count("GET", "/resolve/") == before > 0


def test_a_folder_that_is_here_goes_before_a_repository(hub, fetch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    holding(hub, "last-checkpoint")
    for folder in (tmp_path / REPO, tmp_path / "out" / REPO):
        folder.mkdir(parents=True)
        assert fetch(REPO) is None
        folder.rmdir()
    (tmp_path / REPO).mkdir()
    assert fetch(f"{REPO}/checkpoint-4") is None  # a folder of that folder that is missing
    assert fetch("checkpoint-4") is None
    assert hub.requests == []


def test_the_token_opens_a_private_repository(hub, fetch, monkeypatch):
    hub.create(REPO, private=True)
    hub.commit(REPO, {f"last-checkpoint/{name}": data for name, data in TINY.items()})
    assert contents(fetch(REPO)) == TINY
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert contents(fetch(REPO, token=None)) == TINY


# What goes wrong


def test_what_is_missing_is_told_with_what_to_do(hub, fetch, monkeypatch):
    holding(hub, "a", "b/c")
    assert refusal(fetch, "user/none") == (
        "resume_from_checkpoint: is no folder here, and no repository on the Hub or the token may not read it, got "
        "'user/none'. Correct it. Set hub_token or HF_TOKEN to one that may."
    )
    assert refusal(fetch, "user/none", token=None) == (
        "resume_from_checkpoint: is no folder here, and no repository on the Hub or it is private, and nobody is "
        "logged in, got 'user/none'. Correct it. Set hub_token or HF_TOKEN."
    )
    assert refusal(fetch, f"{REPO}@none") == (
        "resume_from_checkpoint: the repository has no such revision, got 'user/thing@none'. "
        "Name a branch, a tag or a commit of it."
    )
    assert refusal(fetch, REPO) == (
        "resume_from_checkpoint: the repository has no last-checkpoint and no checkpoint-<step>, got 'user/thing'. "
        "Push with hub_strategy='checkpoint' or 'all_checkpoints', or name a folder of it, 'user/repo/folder'. "
        "It has a, b."
    )
    assert refusal(fetch, f"{REPO}/d") == (
        "resume_from_checkpoint: the repository has no such folder, got 'user/thing/d'. It has a, b."
    )
    hub.create("user/bare")
    assert refusal(fetch, "user/bare/d").endswith("It has no folders.")
    holding(hub, *"abcdefg", repo="user/many")
    assert refusal(fetch, "user/many/x").endswith("It has a, b, c, d, e and 2 more.")


def test_a_wrong_token_is_told_and_not_shown(hub, fetch, caplog):
    holding(hub, "last-checkpoint")
    text = refusal(fetch, REPO, token="hf_wrong")
    assert text == (
        "resume_from_checkpoint: the Hub refuses the token, got 'user/thing' (HfHubHTTPError 401: "
        "Invalid credentials in Authorization header). Set hub_token or HF_TOKEN to one that may."
    )
    assert "hf_wrong" not in text + caplog.text


def test_a_private_repository_of_others_is_told_as_one_that_may_not_be_read(hub, fetch):
    hub.create("other/own", private=True)
    assert "or the token may not read it" in refusal(fetch, "other/own")


def test_a_hub_that_is_busy_or_cuts_off_is_asked_again(hub, fetch, waited, caplog):
    holding(hub, "last-checkpoint")
    hub.fault("GET", r"/api/models/user/thing$", 503)
    hub.fault("GET", r"/api/models/user/thing$", "cut", at=2)
    hub.fault("GET", r"/tree/", 429, times=1, retry_after=7)
    with caplog.at_level(logging.WARNING, logger="trainer_core.hub_push"):
        assert contents(fetch(REPO)) == TINY
    assert waited[:2] == [1.0, 2.0]
    assert 7.0 in waited or 8.0 in waited  # ours, or the client's own wait, which adds a second
    assert caplog.messages[0] == (
        "resume_from_checkpoint: HfHubHTTPError 503: This error was asked for; trying again in 1 s."
    )


def test_a_hub_that_stays_away_is_told(hub, fetch, waited):
    holding(hub, "last-checkpoint")
    hub.fault("*", ".", 503, times=None, retry_after=3600)
    assert refusal(fetch, REPO) == (
        "resume_from_checkpoint: could not be pulled from the Hub, got 'user/thing' "
        "(HfHubHTTPError 503: This error was asked for). Try again later, or pass a folder."
    )
    assert waited == [60.0] * 4
    hub.clear_faults()
    hub.stop()
    assert "ConnectError" in refusal(fetch, REPO)


def test_a_hub_that_goes_away_between_does_not_give_half_a_checkpoint(hub, fetch):
    holding(hub, "last-checkpoint")
    fetch(REPO)
    hub.commit(REPO, {"last-checkpoint/model.safetensors": b"newer"})
    hub.fault("*", "/resolve/", 500, times=None)
    assert "could not be pulled from the Hub" in refusal(fetch, REPO)
    hub.clear_faults()
    assert (fetch(REPO) / "model.safetensors").read_bytes() == b"newer"


def test_a_file_that_arrived_short_is_named(hub, fetch, monkeypatch):
    holding(hub, "last-checkpoint")

    def shorten(api, repo, commit, below, target):
        (target / below).mkdir(parents=True)
        (target / below / "empty.txt").touch()
        (target / below / "manifest.json").write_bytes(b"{")

    monkeypatch.setattr(pulling, "_download", shorten)
    text = refusal(fetch, REPO)
    assert "manifest.json: arrived with 1 bytes instead of 2. Remove " in text
    monkeypatch.setattr(pulling, "_download", lambda *given: None)
    (Path(text.split("manifest.json")[0][:-1]) / "manifest.json").unlink()
    assert "manifest.json: did not arrive. Remove " in refusal(fetch, REPO)


@pytest.mark.parametrize("name", [".pulled", ".pulled/user--thing", ".pulled/user--thing/0123/last-checkpoint"])
def test_nothing_is_pulled_through_a_link(hub, fetch, tmp_path, name):
    holding(hub, "last-checkpoint")
    link = tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    (tmp_path / "mine" / "precious").mkdir(parents=True)
    link.symlink_to(tmp_path / "mine")
    assert refusal(fetch, REPO) == f"{link}: is a link, and is not written through. Remove it."
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]


# A run


class Cut:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.step:
            trainer.request(Signal.SAVE, by="cut", why="the test says so")
            trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)


def trainer_in(output_dir, *plugins, **options):
    torch.manual_seed(1)
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05, "logging_steps": 2}
    args = TrainingArguments(output_dir, block_plugins=["console"], **(settings | options))
    return Trainer(model=tiny_model(), args=args, train_dataset=tiny_dataset(), plugins=plugins)


def outcome(trainer):
    rows = [
        {name: value for name, value in row.items() if not name.endswith(("_runtime", "_per_second"))}
        for row in trainer.state.log_history
    ]
    return copy.deepcopy(
        (trainer.model.state_dict(), trainer.optimizer.state_dict(), rows, trainer.state.num_samples_seen)
    )


def assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


@pytest.fixture
def pushed(api, tmp_path):
    """The repository with a checkpoint of step 5 of a run that was cut there."""
    cut = trainer_in(tmp_path / "cut", Cut(5))
    cut.train()
    assert cut.outcome == "interrupted"
    api.create_repo(REPO)
    folder = tmp_path / "cut" / "checkpoint-5"
    api.upload_folder(repo_id=REPO, folder_path=folder, path_in_repo="last-checkpoint")
    return folder


def test_a_run_goes_on_from_the_hub_as_if_it_had_not_been_cut(hub, pushed, tmp_path):
    whole = trainer_in(tmp_path / "whole")
    whole.train()
    again = trainer_in(tmp_path / "again", hub_token="hf_writer")
    again.train(resume_from_checkpoint=f"{REPO}@main")
    assert again.resumed_from.name == "last-checkpoint"
    assert contents(again.resumed_from) == contents(pushed)
    assert_equal(outcome(whole), outcome(again))
    assert again.state.global_step == whole.state.global_step == 12


def test_the_setting_may_name_a_repository_as_well(hub, pushed, tmp_path):
    again = trainer_in(tmp_path / "again", hub_token="hf_writer", resume_from_checkpoint=REPO)
    again.train()
    assert (again.resumed_from.name, again.state.global_step) == ("last-checkpoint", 12)


def test_a_damaged_checkpoint_is_found_when_it_is_read(hub, pushed, tmp_path):
    weights = (pushed / "model.safetensors").read_bytes()
    hub.commit(REPO, {"last-checkpoint/model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged, its checksum does not fit"):
        trainer_in(tmp_path / "again", hub_token="hf_writer").train(resume_from_checkpoint=REPO)


def test_a_run_that_cannot_pull_ends_before_it_trains(hub, tmp_path):
    trainer = trainer_in(tmp_path / "again", hub_token="hf_writer")
    with pytest.raises(CheckpointError, match="no repository on the Hub"):
        trainer.train(resume_from_checkpoint="user/none")
    assert trainer.state.global_step == 0


@pytest.mark.slow
def test_one_rank_pulls_for_all_and_fails_for_all(hub, api, tmp_path):
    def on_two_ranks(output_dir, source):
        output_dir.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        environment = os.environ | hub.environment | {
            "HF_TOKEN": "hf_writer", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        command += [str(SCRIPT), str(output_dir), source]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads((output_dir / f"rank-{rank}.json").read_text()) for rank in (0, 1)]

    cut = trainer_in(tmp_path / "cut", max_steps=2, per_device_train_batch_size=8)
    cut.train()
    api.create_repo(REPO)
    failed = on_two_ranks(tmp_path / "failed", REPO)
    assert failed[0] == failed[1]
    assert failed[0]["error"].startswith("resume_from_checkpoint: the repository has no last-checkpoint")
    api.upload_folder(repo_id=REPO, folder_path=tmp_path / "cut" / "checkpoint-2", path_in_repo="last-checkpoint")
    before = hub.count("GET", "/tree/")
    assert on_two_ranks(tmp_path / "done", REPO) == [{"from": "last-checkpoint", "step": 4}] * 2
    assert hub.count("GET", "/tree/") - before in (1, 2)  # ours, and the client's own listing
    assert hub_api("hf_writer").model_info(REPO).id == REPO
