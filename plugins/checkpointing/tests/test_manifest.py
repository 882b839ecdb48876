"""Whatever is done to a file of a checkpoint is found, and the file is named."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_core import CheckpointError
from trainer_core_checkpointing.manifest import MANIFEST, SCHEMA, files_in, read_manifest, verify

FILES = [
    "log_history.jsonl",
    "manifest.json",
    "model.safetensors",
    "rank-00000.json",
    "rank-00000.safetensors",
    "state.json",
    "state.safetensors",
]


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def run(small, output_dir, tmp_path):
    """Gives a copy of a folder with checkpoints 6, 12 and 18."""
    if not list(output_dir.iterdir()):
        small.trainer(output_dir, save_steps=6).train()
    target = tmp_path / "run"
    shutil.copytree(output_dir, target)
    return target


def flip(file, place, mask=1):
    content = bytearray(file.read_bytes())
    content[place] ^= mask
    file.write_bytes(content)


def test_a_checkpoint_has_these_files_and_is_whole(run):
    assert sorted(files_in(run / "checkpoint-18")) == FILES
    manifest = verify(run / "checkpoint-18")
    assert (manifest.step, manifest.world_size, manifest.is_resumable) == (18, 1, True)
    assert sorted(manifest.files) == sorted(set(FILES) - {MANIFEST})
    assert manifest.settings["learning_rate"] == 0.05
    assert manifest.sources["learning_rate"] == "keyword"
    assert manifest.plugins["checkpointing"].startswith("trainer_core_checkpointing.plugin.Checkpointing 0.")
    assert set(manifest.versions) == {"python", "torch", "trainer_core"}


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_in_every_file(name, run):
    folder = run / "checkpoint-12"
    entry = read_manifest(folder).files.get(name)
    size = entry.size if entry is not None else (folder / name).stat().st_size
    for place in sorted({0, 1, 7, 8, size // 3, size // 2, size - 2, size - 1}):
        for mask in (1, 0x80):
            before = (folder / name).read_bytes()
            flip(folder / name, place, mask)
            with pytest.raises(CheckpointError, match=re.escape(str(folder / name))):
                verify(folder)
            (folder / name).write_bytes(before)
    verify(folder)


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_the_manifest_itself_is_found(run, place, mask):
    file = run / "checkpoint-6" / MANIFEST
    before = file.read_bytes()
    flip(file, int(place * len(before)), mask)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(run / "checkpoint-6")
    file.write_bytes(before)


@pytest.mark.parametrize("name", sorted(set(FILES) - {MANIFEST}))
def test_a_missing_truncated_grown_or_swapped_file_is_found(name, run):
    folder = run / "checkpoint-18"
    whole = (folder / name).read_bytes()
    damages = [whole[: len(whole) // 2], b"", whole[:-1]]
    if name != "log_history.jsonl":
        damages.append(whole + b"\0")
    older = (run / "checkpoint-6" / name).read_bytes()
    if name != "log_history.jsonl":  # one file for all checkpoints
        damages.append(older)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{folder / name}: is missing")):
        verify(folder)
    for damage in damages:
        (folder / name).write_bytes(damage)
        with pytest.raises(CheckpointError, match=re.escape(f"{folder / name}: is damaged")):
            verify(folder)


def test_an_additional_file_and_a_link_are_found(run):
    folder = run / "checkpoint-18"
    (folder / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=re.escape(f"{folder / 'optimizer.pt'}: does not belong")):
        verify(folder)
    (folder / "optimizer.pt").unlink()
    (folder / "model.safetensors").rename(run / "elsewhere")
    (folder / "model.safetensors").symlink_to(run / "elsewhere")
    with pytest.raises(CheckpointError, match=re.escape(f"{folder / 'model.safetensors'}: is no regular file")):
        verify(folder)


def test_a_pipe_is_refused_and_not_waited_for(run):
    folder = run / "checkpoint-18"
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json: is no regular file"):
        verify(folder)


def test_rows_that_are_logged_later_change_no_checkpoint(run):
    with (run / "checkpoint-6" / "log_history.jsonl").open("ab") as file:
        file.write(b'{"loss":1}\n')
    verify(run / "checkpoint-6")


def test_a_newer_schema_is_refused_by_name(run):
    file = run / "checkpoint-18" / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": SCHEMA + 1}))
    with pytest.raises(CheckpointError, match="was written by a newer version, schema 2; this one reads 1"):
        read_manifest(run / "checkpoint-18")


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"format": "other"}', "{", "[" * 100_000])
def test_a_file_that_is_no_manifest_is_an_error_of_ours(text, tmp_path):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_the_newest_whole_checkpoint_is_used_instead(name, run, small, caplog):
    folder = run / "checkpoint-18"
    entry = read_manifest(folder).files.get(name)
    size = entry.size if entry is not None else (folder / name).stat().st_size
    flip(folder / name, size - 1)
    again = small.trainer(run, save_strategy="no")
    with caplog.at_level(logging.WARNING, "trainer_core.checkpointing"):
        again.train(resume_from_checkpoint=True)
    assert again.resumed_from == run / "checkpoint-12"
    (warning,) = [record.getMessage() for record in caplog.records if "is passed over" in record.getMessage()]
    assert warning.startswith("checkpoint-18: is passed over. ")
    assert name in warning


def test_no_pickle_is_written_or_read(run):
    for name in files_in(run / "checkpoint-18"):
        head = (run / "checkpoint-18" / name).read_bytes()[:2]
        assert head not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"), name
    import trainer_core_checkpointing

    for file in sorted(os.scandir(os.path.dirname(trainer_core_checkpointing.__file__)), key=lambda entry: entry.name):
        if file.name.endswith(".py"):
            with open(file.path, encoding="utf-8") as source:
                text = source.read()
            assert not re.search(r"torch\.load\b|torch\.save\b|import pickle|pickle\.", text), file.name
