"""What cannot be resumed from is refused in one sentence, and earlier runs in a folder are told apart."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from torch import nn

from trainer_core import CheckpointError, SettingsError, Trainer

WHERE = "resume_from_checkpoint: "


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def run(small, made, tmp_path):
    if not list(made.iterdir()):
        small.trainer(made, save_steps=6).train()
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def refusal(trainer, source):
    with pytest.raises(CheckpointError) as caught:
        trainer.train(resume_from_checkpoint=source)
    return str(caught.value)


def test_where_nothing_was_saved_yet_the_run_begins(small, tmp_path):
    begun, anew = small.trainer(tmp_path / "begun"), small.trainer(tmp_path / "anew")
    begun.train(resume_from_checkpoint=True)
    anew.train()
    assert (begun.resumed_from, begun.state.global_step) == (None, 18)
    assert all(torch.equal(*pair) for pair in zip(begun.model.parameters(), anew.model.parameters(), strict=True))


def test_where_no_checkpoint_is_whole_nothing_begins(small, run):
    for path in run.glob("checkpoint-*"):
        (path / "manifest.json").unlink()
    assert refusal(small.trainer(run), True) == (
        f"{WHERE}no checkpoint in {run} can be resumed from, got True. Pass False or leave it out to start anew."
    )


def test_a_path_that_is_missing_a_file_or_empty(small, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, what in (("missing", "does not exist"), ("file", "is a file"), ("empty", "is empty")):
        path = str(tmp_path / name)
        expected = f"{WHERE}the folder {what}, got {path!r}. Pass that of a checkpoint."
        assert refusal(small.trainer(tmp_path / "run"), path) == expected


def test_a_folder_of_checkpoints_names_one_of_them(small, run):
    path = str(run / "checkpoint-18")
    assert refusal(small.trainer(run), run) == (
        f"{WHERE}is a folder of checkpoints, got {str(run)!r}. Pass one of them, for example {path!r}."
    )


def test_a_folder_that_no_save_has_written(small, tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    what = "is no checkpoint, it has no manifest.json"
    expected = f"{tmp_path / 'checkpoint-5'}: {what}. Pass a folder that a save has written."
    assert refusal(small.trainer(tmp_path), tmp_path / "checkpoint-5") == expected


def test_a_checkpoint_of_another_model(small, run):
    class Other(small.Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 5)

    text = refusal(small.trainer(run, model=Other()), True)
    assert "checkpoint-18: holds another model, head." in text
    assert text.endswith("Build the model as it was when it was saved.")


def test_a_checkpoint_of_another_optimizer(small, run):
    class Own(Trainer):
        def create_optimizer(self):
            self.optimizer = torch.optim.AdamW([self.model.head.weight], lr=0.1)
            return self.optimizer

    trainer = small.trainer(run)
    trainer.__class__ = Own
    assert refusal(trainer, True).startswith("optimizer: its state in the checkpoint does not fit")


def test_a_name_is_looked_for_in_the_output_folder(small, run):
    again = small.trainer(run)
    again.train(resume_from_checkpoint="checkpoint-6")
    assert again.resumed_from == run / "checkpoint-6"


def test_a_manifest_that_lies_about_its_step_is_passed_over(small, run, caplog):
    (run / "checkpoint-18").rename(run / "checkpoint-40")
    again = small.trainer(run)
    with caplog.at_level(logging.WARNING):
        again.train(resume_from_checkpoint=True)
    assert again.resumed_from == run / "checkpoint-12"
    assert "checkpoint-40: is passed over." in caplog.text
    assert "is of step 18, not of the one in the folder's name." in caplog.text


def test_folders_of_others_are_neither_resumed_from_nor_deleted(small, run):
    (run / "checkpoint-900").mkdir()
    (run / "checkpoint-900" / "pytorch_model.bin").write_bytes(b"theirs")
    (run / "checkpoint-mine").mkdir()
    again = small.trainer(run, save_total_limit=1)
    again.train(resume_from_checkpoint="checkpoint-6")
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [
        "checkpoint-18",
        "checkpoint-900",
        "checkpoint-mine",
    ]


def test_a_new_run_in_the_folder_is_newer_than_the_old_one(small, run, caplog):
    with caplog.at_level(logging.WARNING):
        small.trainer(run, small.Cut(4), save_steps=4, save_total_limit=1).train()
    assert "holds 3 checkpoint(s) of an earlier run, the newest is checkpoint-18" in caplog.text
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-18",
        "checkpoint-4",
        "checkpoint-6",
    ]
    again = small.trainer(run, small.Cut(5), save_steps=100)
    again.train(resume_from_checkpoint=True)
    assert again.resumed_from == run / "checkpoint-4"


def test_a_branch_from_an_older_checkpoint_is_newer_than_what_it_left(small, run):
    branch = small.trainer(run, small.Cut(8), save_steps=100)
    branch.train(resume_from_checkpoint=run / "checkpoint-6")
    again = small.trainer(run, small.Cut(9), save_steps=100)
    again.train(resume_from_checkpoint=True)
    assert again.resumed_from == run / "checkpoint-8"


def test_another_batch_size_keeps_the_position_in_samples_or_is_refused(small, tmp_path):
    in_order = {"train_sampling_strategy": "sequential"}
    small.trainer(tmp_path, small.Cut(2), dataset=small.Augmented(24), **in_order).train()
    dataset = small.Augmented(24)
    again = small.trainer(
        tmp_path,
        dataset=dataset,
        per_device_train_batch_size=2,
        num_train_epochs=1,
        **in_order,
    )
    again.train(resume_from_checkpoint=True)
    assert sorted(set(dataset.loaded)) == list(range(8, 24))
    refused = small.trainer(tmp_path / "x", dataset=small.Augmented(24), per_device_train_batch_size=3, **in_order)
    with pytest.raises(SettingsError, match=r"got 3\. Resume with 1, 2 or 4 on 1 rank\."):
        refused.train(resume_from_checkpoint=tmp_path / "checkpoint-2")


def test_a_state_of_another_step_than_the_manifest_is_refused(small, run):
    from trainer_core_checkpointing.manifest import FileEntry, checksum, read_manifest, write_manifest

    folder = run / "checkpoint-12"
    state = json.loads((folder / "state.json").read_text())
    state["counters"]["global_step"] = 7
    (folder / "state.json").write_text(json.dumps(state))
    manifest = read_manifest(folder)
    size = (folder / "state.json").stat().st_size
    manifest.files["state.json"] = FileEntry(size, checksum(folder / "state.json", size))
    write_manifest(folder, manifest)
    assert "state.json: is of step 7, not 12" in refusal(small.trainer(run), folder)


def test_overwriting_deletes_checkpoints_of_other_runs_when_this_run_has_one(small, tmp_path, caplog):
    small.trainer(tmp_path, save_steps=6).train()
    (tmp_path / "checkpoint-mine").mkdir()
    seen = []

    class Looking:
        def on_step_end(self, trainer):
            seen.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))

    trainer = small.trainer(tmp_path, save_steps=4, overwrite_output_dir=True)
    trainer.add_callback(Looking())
    trainer.train()
    assert "holds 3 checkpoint(s) of an earlier run, the newest is checkpoint-18. They are deleted when" in caplog.text
    assert seen[3] == ["checkpoint-12", "checkpoint-18", "checkpoint-6", "checkpoint-mine"]
    assert seen[4] == ["checkpoint-4", "checkpoint-mine"]


def test_a_resumed_run_that_overwrites_keeps_its_own_checkpoints(small, tmp_path):
    small.trainer(tmp_path, save_steps=6, max_steps=12).train()
    small.trainer(tmp_path, save_steps=6, overwrite_output_dir=True).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-18",
        "checkpoint-6",
    ]
