"""Every damage to every file of a checkpoint is found, and the file is named: the whole matrix of files and damages.

The checkpoint is one of two ranks and of a model whose library writes shards, an index, a config and a tokenizer.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer_core import CheckpointError, InvalidCheckpointError, journal_records
from trainer_core_checkpointing import reading
from trainer_core_checkpointing.checking import check
from trainer_core_checkpointing.manifest import MANIFEST, FileEntry, checksum, files_in, read_manifest, write_manifest

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FILES = [
    "config.json",
    "log_history.jsonl",
    "manifest.json",
    *SHARDS,
    "model.safetensors.index.json",
    "rank-00000.json",
    "rank-00000.safetensors",
    "rank-00001.json",
    "rank-00001.safetensors",
    "state.json",
    "state.safetensors",
    "tokenizer/vocabulary.txt",
]


class Tokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocabulary.txt").write_text("a\nb\n")


def library_model(small):
    """Gives a model of a library that writes files of its own."""

    class Sharded(small.Net):
        def save_pretrained(self, folder):
            tensors = list(self.state_dict().items())
            halves = dict(zip(SHARDS, (dict(tensors[:4]), dict(tensors[4:])), strict=True))
            for name, half in halves.items():
                save_file({key: tensor.clone() for key, tensor in half.items()}, folder / name)
            places = {key: name for name, half in halves.items() for key in half}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
            (folder / "config.json").write_text(json.dumps({"step": float(tensors[0][1].sum())}))

    return Sharded()


def seal(folder, **changes):
    """Makes the manifest anew for what is in the folder."""
    manifest = replace(read_manifest(folder), **changes)
    for name in [*manifest.files]:
        if not (folder / name).exists():
            del manifest.files[name]
    for name in files_in(folder):
        if name != MANIFEST:
            size, grows = (folder / name).stat().st_size, name == "log_history.jsonl"
            manifest.files[name] = FileEntry(size, checksum(folder / name, size), grows)
    write_manifest(folder, manifest)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def run(small, made, tmp_path):
    """Gives a folder with checkpoints 6, 12 and 18, each with the files of a second rank and a history of its own."""
    if not list(made.iterdir()):
        trainer = small.trainer(made, save_steps=6, model=library_model(small))
        trainer.processing_class = Tokenizer()
        trainer.train()
        for folder in made.glob("checkpoint-*"):
            size = read_manifest(folder).files["log_history.jsonl"].size
            rows = (folder / "log_history.jsonl").read_bytes()[:size]
            (folder / "log_history.jsonl").unlink()  # so that a damage stays in this checkpoint
            (folder / "log_history.jsonl").write_bytes(rows)
            for kind in ("json", "safetensors"):
                shutil.copyfile(folder / f"rank-00000.{kind}", folder / f"rank-00001.{kind}")
            seal(folder, world_size=2)
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def flipped(place):
    def damage(file, older):
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        file.write_bytes(content)

    return damage


def with_content(change):
    def damage(file, older):
        file.write_bytes(change(file.read_bytes(), older.read_bytes()))

    return damage


def exchanged(file, older):
    """Swaps a file with that of the older checkpoint."""
    mine, theirs = file.read_bytes(), older.read_bytes()
    file.write_bytes(theirs)
    older.write_bytes(mine)


def with_other(make):
    """Puts something in the file's place that is no file of its own."""

    def damage(file, older):
        file.rename(file.parent.parent.parent / "moved")
        make(file)

    return damage


DAMAGES = {
    "first byte flipped": flipped(0),
    "a byte in the middle flipped": flipped(0.5),
    "last byte flipped": flipped(1),
    "a block of zeros": with_content(lambda mine, older: bytes(min(512, len(mine))) + mine[512:]),
    "cut in half": with_content(lambda mine, older: mine[: len(mine) // 2]),
    "cut by a byte": with_content(lambda mine, older: mine[:-1]),
    "empty": with_content(lambda mine, older: b""),
    "longer by a byte": with_content(lambda mine, older: mine + b"\0"),
    "doubled": with_content(lambda mine, older: mine + mine),
    "missing": lambda file, older: file.unlink(),
    "of an older save": with_content(lambda mine, older: older),
    "of an older save in its size": with_content(lambda mine, older: (older + bytes(len(mine)))[: len(mine)]),
    "swapped with an older save": exchanged,
    "a folder": with_other(lambda file: file.mkdir()),
    "a link to itself elsewhere": with_other(lambda file: file.symlink_to(file.parent.parent.parent / "moved")),
    "a pipe": with_other(os.mkfifo),
}
GROWS = {"log_history.jsonl": {"longer by a byte", "doubled"}}  # rows of later steps follow there in any run
EQUAL = {"tokenizer/vocabulary.txt", "model.safetensors.index.json"}  # the same at each save
HARMLESS = {name: {damage for damage in DAMAGES if "an older" in damage} for name in EQUAL} | GROWS


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damage_is_found_and_named(name, damage, run):
    folder = run / "checkpoint-18"
    check(folder)
    DAMAGES[damage](folder / name, run / "checkpoint-12" / name)
    if damage in HARMLESS.get(name, ()):
        check(folder)
        return
    with pytest.raises(InvalidCheckpointError) as caught:
        check(folder)
    gone = {folder, folder / name} if name == MANIFEST else {folder / name}
    assert caught.value.file in gone
    assert str(caught.value).startswith(f"{caught.value.file}: ")
    assert str(caught.value).split(". ", 1)[1] in {
        "Use another checkpoint.",
        "Remove it, or use another checkpoint.",
        "Pass a folder that a save has written.",
    }


def test_the_matrix_has_every_file_of_the_layout(run):
    assert sorted(files_in(run / "checkpoint-18")) == FILES


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST])
@pytest.mark.parametrize("other", ["state.json", "rank-00001.safetensors", SHARDS[0]])
def test_two_files_of_one_checkpoint_that_changed_places_are_found(name, other, run):
    folder = run / "checkpoint-18"
    mine, theirs = (folder / name).read_bytes(), (folder / other).read_bytes()
    (folder / name).write_bytes(theirs)
    (folder / other).write_bytes(mine)
    if mine == theirs:  # the second rank's files are copies of the first's
        check(folder)
        return
    with pytest.raises(InvalidCheckpointError) as caught:
        check(folder)
    assert caught.value.file in (folder / name, folder / other)


@pytest.mark.parametrize("place", ["", "tokenizer/", "new/", "a/b/c/"])
@pytest.mark.parametrize("name", ["optimizer.pt", ".hidden", "rank-00002.json", "manifest.json.bak", "state"])
def test_an_additional_file_is_found_wherever_it_is(place, name, run):
    file = run / "checkpoint-18" / place / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    with pytest.raises(InvalidCheckpointError) as caught:
        check(run / "checkpoint-18")
    assert str(caught.value) == (f"{file}: does not belong to the checkpoint. Remove it, or use another checkpoint.")


@pytest.mark.parametrize("name", ["state.json", "rank-00000.json", "rank-00001.json", "log_history.jsonl"])
def test_a_manifest_that_lacks_a_file_of_the_layout_is_refused(name, run):
    (run / "checkpoint-18" / name).unlink()
    seal(run / "checkpoint-18")
    with pytest.raises(InvalidCheckpointError, match=rf"manifest\.json: lacks {name}, which a checkpoint has"):
        check(run / "checkpoint-18")


def test_two_checkpoints_that_changed_places_are_found(run):
    (run / "checkpoint-18").rename(run / "x")
    (run / "checkpoint-12").rename(run / "checkpoint-18")
    (run / "x").rename(run / "checkpoint-12")
    for step, other in ((12, 18), (18, 12)):
        file = run / f"checkpoint-{step}" / MANIFEST
        with pytest.raises(InvalidCheckpointError) as caught:
            check(file.parent)
        what = f"is of step {other}, not of the one in the folder's name"
        assert str(caught.value) == f"{file}: {what}. Use another checkpoint."


# What a run does about it


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tmp_path_factory.mktemp("plain")


@pytest.fixture
def trained(small, plain, tmp_path):
    """Gives a folder with checkpoints 6, 12 and 18 of a plain run, the best of them 12."""
    if not list(plain.iterdir()):
        trainer(small, plain).train()
    shutil.copytree(plain, tmp_path / "plain")
    return tmp_path / "plain"


class PeakAtTwelve:
    """Makes the evaluation after update 12 the best."""

    def on_evaluate(self, trainer, metrics):
        metrics["eval_loss"] = float(abs(trainer.state.global_step - 12))


def trainer(small, folder, *plugins, **options):
    settings = {"eval_strategy": "steps", "eval_steps": 6, "save_steps": 6, "load_best_model_at_end": True}
    return small.trainer(folder, PeakAtTwelve(), *plugins, **(settings | options))


def told(folder):
    """Gives what the journal says of checkpoints that were passed over."""
    records = journal_records(folder / "journal.jsonl", "checkpoint_passed_over")
    return [tuple(record[name] for name in ("wanted", "checkpoint", "file", "reason")) for record in records]


def damaged_file(folder, name, damage):
    """Damages a file of checkpoint 18 and gives what is wrong with it, as it is said."""
    unshare(folder / "checkpoint-18" / name)
    DAMAGES[damage](folder / "checkpoint-18" / name, folder / "checkpoint-12" / name)
    with pytest.raises(InvalidCheckpointError) as caught:
        check(folder / "checkpoint-18")
    return caught.value


def unshare(file):
    """Gives a file a content of its own: checkpoints share the history."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)


PLAIN_FILES = [
    "log_history.jsonl",
    "manifest.json",
    "model.safetensors",
    "rank-00000.json",
    "rank-00000.safetensors",
    "state.json",
    "state.safetensors",
]


@pytest.mark.parametrize("damage", ["a byte in the middle flipped", "cut by a byte", "missing", "a pipe"])
@pytest.mark.parametrize("name", PLAIN_FILES)
def test_the_newest_valid_checkpoint_is_used_and_why_is_said_and_journaled(name, damage, trained, small, caplog):
    error = damaged_file(trained, name, damage)
    again = trainer(small, trained)
    again.train(resume_from_checkpoint=True)
    assert again.resumed_from == trained / "checkpoint-12"
    warnings = [line.getMessage() for line in caplog.records if "passed over" in line.getMessage()]
    assert warnings == [f"checkpoint-18: is passed over. {error}"]
    assert told(trained) == [("newest", "checkpoint-18", str(error.file), str(error))]
    check(trained / "checkpoint-18")  # the run has come there again, and has replaced it


@pytest.mark.parametrize("name", PLAIN_FILES)
def test_the_error_is_raised_where_the_settings_want_that(name, trained, small):
    error = damaged_file(trained, name, "first byte flipped")
    again = trainer(small, trained, on_invalid_checkpoint="raise")
    with pytest.raises(CheckpointError) as caught:
        again.train(resume_from_checkpoint=True)
    remedy = "To use it, name it, or set on_invalid_checkpoint='fall_back'."
    assert str(caught.value) == f"{error} The newest valid one is {trained / 'checkpoint-12'}. {remedy}"
    assert again.state.global_step == 0


@pytest.mark.parametrize("policy", ["fall_back", "raise"])
def test_a_checkpoint_that_is_named_is_never_replaced_by_another(policy, trained, small):
    error = damaged_file(trained, "state.json", "last byte flipped")
    again = trainer(small, trained, on_invalid_checkpoint=policy)
    for source in ("checkpoint-18", str(trained / "checkpoint-18")):
        with pytest.raises(CheckpointError) as caught:
            again.train(resume_from_checkpoint=source)
        assert str(caught.value) == f"{error} The newest valid one is {trained / 'checkpoint-12'}."


def test_where_none_is_valid_each_is_said(trained, small, caplog):
    for folder in trained.glob("checkpoint-*"):
        (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be resumed from, got True\. Pass False"):
        trainer(small, trained).train(resume_from_checkpoint=True)
    warnings = [line.getMessage() for line in caplog.records if "passed over" in line.getMessage()]
    assert warnings == [
        f"checkpoint-{step}: is passed over. {trained / f'checkpoint-{step}' / 'state.json'}: is missing. "
        f"Use another checkpoint."
        for step in (18, 12, 6)
    ]


class Damaging:
    """Damages the best checkpoint at the last update."""

    def __init__(self, folder, name, damage):
        self.file, self.damage = folder / "checkpoint-12" / name, damage

    def on_step_end(self, trainer):
        if trainer.state.global_step == 18:
            unshare(self.file)
            DAMAGES[self.damage](self.file, self.file.parent.parent / "checkpoint-6" / self.file.name)


@pytest.mark.parametrize("damage", ["a byte in the middle flipped", "cut by a byte", "missing"])
@pytest.mark.parametrize("name", PLAIN_FILES)
def test_a_best_model_that_is_damaged_is_not_loaded(name, damage, small, tmp_path, caplog):
    run = trainer(small, tmp_path, Damaging(tmp_path, name, damage))
    run.train()
    file = tmp_path / "checkpoint-12" / name
    (record,) = told(tmp_path)
    assert record[:2] == ("best", "checkpoint-12")
    assert record[2] in (str(file), str(file.parent))
    where = "load_best_model_at_end: the model keeps the weights of the last step"
    assert [line.getMessage() for line in caplog.records if where in line.getMessage()] == [f"{where}. {record[3]}"]
    assert run.loaded_best_from is None
    last = load_file(tmp_path / "checkpoint-18" / "model.safetensors")
    assert all(torch.equal(tensor, last[key]) for key, tensor in run.model.state_dict().items())


def test_a_best_model_that_is_damaged_ends_the_run_where_the_settings_want_that(small, tmp_path):
    damaging = Damaging(tmp_path, "model.safetensors", "missing")
    with pytest.raises(InvalidCheckpointError, match=r"checkpoint-12/model\.safetensors: is missing\. Use another"):
        trainer(small, tmp_path, damaging, on_invalid_checkpoint="raise").train()


def test_what_is_verified_is_what_is_loaded(trained, small, monkeypatch):
    """A file that is changed between the check and the loading is found, and nothing of it is taken over."""
    for name in PLAIN_FILES:
        if name in (MANIFEST, "log_history.jsonl"):
            continue
        again, before = trainer(small, trained), (trained / "checkpoint-18" / name).read_bytes()
        found = reading.load

        def late(trainer, checkpoint, name=name, found=found):
            flipped(0.9)(trained / "checkpoint-18" / name, None)
            return found(trainer, checkpoint)

        monkeypatch.setattr(reading, "load", late)
        weights = {key: tensor.clone() for key, tensor in again.model.state_dict().items()}
        with pytest.raises(CheckpointError, match=rf"{name}: is damaged, its checksum does not fit"):
            again.train(resume_from_checkpoint=True)
        monkeypatch.undo()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in again.model.state_dict().items())
        (trained / "checkpoint-18" / name).write_bytes(before)


def test_a_link_that_takes_a_files_place_after_the_check_is_not_followed(trained, small, monkeypatch):
    found = reading.load

    def late(trainer, checkpoint):
        (trained / "checkpoint-18" / "state.json").rename(trained / "moved")
        (trained / "checkpoint-18" / "state.json").symlink_to(trained / "moved")
        return found(trainer, checkpoint)

    monkeypatch.setattr(reading, "load", late)
    with pytest.raises(CheckpointError, match=r"state\.json: is no regular file"):
        trainer(small, trained).train(resume_from_checkpoint=True)
