"""What is read of an entry that somebody else may have written, or that a disk has damaged."""

import json
import os
import re

import pytest

from trainer_core import PluginError
from trainer_core_hub_push.entries import Push, read_entry
from trainer_core_hub_push.outbox import Outbox


@pytest.fixture
def entry(tmp_path):
    (tmp_path / "model").write_text("weights")
    return Outbox(tmp_path / "run").add(Push("user/first", "Model"), {"model": tmp_path / "model"})


def change(entry, **values):
    body = entry.folder / "entry.json"
    body.write_text(json.dumps({**json.loads(body.read_text()), **values}))


def test_an_entry_is_read_as_it_was_written(entry):
    assert read_entry(entry.folder) == entry


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"repo": 5}, "repo: Input should be a valid string"),
        ({"message": None}, "message: Input should be a valid string"),
        ({"key": ["model"]}, "key: Input should be a valid string"),
        ({"path": {}, "step": "x"}, "path: Input should be a valid string; step: Input should be a valid integer"),
        ({"replaces": "*"}, "replaces: Input should be a valid array"),
        ({"replaces": [1]}, r"replaces\.0: Input should be a valid string"),
        ({"revision": 5}, "revision: Input should be a valid string"),
    ],
)
def test_values_of_another_type_are_refused(entry, values, told):
    change(entry, **values)
    with pytest.raises(ValueError, match=f"^{told}"):
        read_entry(entry.folder)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("[" * 100_000, "entry.json: Invalid JSON: recursion limit exceeded"),
        (" " * 2_000_000, "entry.json is longer than 1000000 bytes"),
        ("{", "entry.json: Invalid JSON: EOF while parsing an object"),
    ],
    ids=["deep", "long", "cut"],
)
def test_a_body_that_is_none_is_refused(entry, body, told):
    (entry.folder / "entry.json").write_text(body)
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        read_entry(entry.folder)


def test_the_id_is_that_of_the_folder(entry):
    change(entry, id="")
    assert read_entry(entry.folder).id == entry.id


@pytest.mark.parametrize("name", ["entry.json", "tried"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "long"])
def test_what_is_no_small_file_is_neither_followed_nor_waited_for(entry, tmp_path, name, kind):
    file, elsewhere = entry.folder / name, tmp_path / "elsewhere"
    (entry.folder / "entry.json").rename(elsewhere)
    if kind == "link":
        file.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_bytes(b" " * 2_000_000)
    if name == "tried":
        assert entry.tried_on == "?"
    else:
        with pytest.raises(
            (OSError, ValueError), match=r"symbolic links|no regular file|directory|longer than 1000000"
        ):
            read_entry(entry.folder)


def test_a_folder_that_is_a_link_is_no_entry(entry, tmp_path):
    entry.folder.rename(tmp_path / "elsewhere")
    entry.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"^it is a link$"):
        read_entry(entry.folder)


@pytest.mark.parametrize("name", ["files/secret", "files/below/secret", "files"])
def test_a_link_is_not_pushed(entry, tmp_path, name):
    elsewhere, link = tmp_path / "elsewhere", entry.folder / name
    (entry.folder / "files").rename(elsewhere)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere if name == "files" else elsewhere / "model")
    with pytest.raises(PluginError) as caught:
        entry.files()
    assert str(caught.value) == f"{link}: is a link, and no push of trainer_core holds one. Delete {entry.folder}."


def test_an_entry_that_has_lost_its_files_is_refused_as_it_would_only_delete(entry):
    (entry.folder / "files" / "model").unlink()
    with pytest.raises(PluginError) as caught:
        entry.files()
    assert str(caught.value) == f"{entry.folder}/files: has lost its files. Delete {entry.folder}."


def test_a_damaged_note_of_a_try_is_one_of_another_head(entry):
    (entry.folder / "tried").write_bytes(b"\xff\xfe")
    assert entry.tried_on not in (None, "")


def test_an_entry_that_is_being_taken_out_has_a_size(entry, monkeypatch):
    assert entry.num_bytes == 7
    monkeypatch.setattr("trainer_core_hub_push.entries.files_in", lambda folder: ["model", "gone"])
    assert entry.num_bytes == 7
