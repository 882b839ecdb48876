import errno
import json
import os
import re
import subprocess
import sys

import pytest

from trainer_core import PluginError
from trainer_core_hub_push.entries import Push, files_in
from trainer_core_hub_push.outbox import Outbox, copy_files

PUSH = Push(
    "user/first", "Training in progress, step 2", path="last-checkpoint", key="last", replaces=("last/*",), step=2
)


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path / "run")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-2"
    (folder / "adapter").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "adapter" / "more.safetensors").write_bytes(b"more")
    (folder / "log_history.jsonl").write_text("{}\n")
    return {name: folder / name for name in files_in(folder)}


def contents(entry):
    return {name: file.read_bytes() for name, file in entry.files().items()}


def names(outbox):
    return sorted(path.name for path in outbox.folder.iterdir())


def test_an_outbox_that_is_not_there_is_empty(outbox):
    assert outbox.entries() == []
    outbox.tidy(staging=True)
    assert not outbox.folder.exists()


def test_an_entry_holds_the_files_and_what_is_to_become_of_them(outbox, checkpoint):
    entry = outbox.add(PUSH, checkpoint)
    assert Outbox(outbox.folder.parent).entries() == [entry]
    assert entry.push == PUSH
    assert contents(entry) == {
        "last-checkpoint/adapter/more.safetensors": b"more",
        "last-checkpoint/log_history.jsonl": b"{}\n",
        "last-checkpoint/model.safetensors": b"weights",
    }
    assert entry.num_bytes == 14
    body = json.loads((entry.folder / "entry.json").read_text())
    assert body == {
        "id": entry.id,
        "created_at": body["created_at"],
        "repo": "user/first",
        "message": "Training in progress, step 2",
        "path": "last-checkpoint",
        "key": "last",
        "replaces": ["last/*"],
        "revision": None,
        "private": None,
        "step": 2,
    }
    assert names(outbox) == [f"00000001-{entry.id}"]


def test_files_of_a_push_to_the_root_have_no_folder(outbox, checkpoint):
    entry = outbox.add(Push("user/first", "Model"), checkpoint)
    assert sorted(entry.files()) == sorted(checkpoint)


def test_entries_are_in_the_order_of_their_queueing(outbox, checkpoint):
    made = [outbox.add(Push("user/first", str(number)), checkpoint) for number in range(12)]
    assert outbox.entries() == made
    outbox.remove(made[0])
    made.append(outbox.add(PUSH, checkpoint))
    assert outbox.entries() == made[1:]


def test_what_is_queued_stays_though_the_checkpoint_goes(outbox, checkpoint):
    entry = outbox.add(PUSH, checkpoint)
    before = contents(entry)
    for file in checkpoint.values():
        file.unlink()
    assert contents(entry) == before


def test_weights_are_linked_and_what_may_grow_is_copied(outbox, checkpoint):
    entry = outbox.add(Push("user/first", "Model"), checkpoint)
    linked = [name for name, file in entry.files().items() if file.samefile(checkpoint[name])]
    assert linked == ["adapter/more.safetensors", "model.safetensors"]
    with checkpoint["log_history.jsonl"].open("a") as file:
        file.write("more\n")
    assert entry.files()["log_history.jsonl"].read_text() == "{}\n"


def test_everything_is_copied_where_links_are_not_offered(outbox, checkpoint, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "link", refuse)
    entry = outbox.add(Push("user/first", "Model"), checkpoint)
    assert contents(entry) == {name: file.read_bytes() for name, file in checkpoint.items()}
    assert not any(file.samefile(checkpoint[name]) for name, file in entry.files().items())


def test_links_are_queued_as_what_they_lead_to(outbox, checkpoint, tmp_path):
    for name, file in checkpoint.items():
        file.rename(tmp_path / "linked")
        file.symlink_to(tmp_path / "linked")
        entry = outbox.add(Push("user/first", "Model"), {name: file})
        before = (tmp_path / "linked").read_bytes()
        (tmp_path / "linked").unlink()
        assert contents(entry) == {name: before}


def test_what_cannot_be_queued_whole_is_not_queued(outbox, checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError):
        outbox.add(PUSH, {**checkpoint, "z.safetensors": tmp_path / "gone.safetensors"})
    assert outbox.entries() == []
    assert names(outbox) == []


def test_an_entry_is_gone_at_once_when_it_is_removed(outbox, checkpoint, monkeypatch):
    entry = outbox.add(PUSH, checkpoint)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # as if the process died there
    outbox.remove(entry)
    assert outbox.entries() == []
    monkeypatch.undo()
    outbox.tidy(staging=False)
    assert names(outbox) == []


def test_tidying_keeps_what_is_being_queued_unless_it_is_told(outbox, checkpoint):
    entry = outbox.add(PUSH, checkpoint)
    with outbox.staging() as staged:
        (staged / "half").write_text("half")
        outbox.tidy(staging=False)
        assert (staged / "half").exists()
        outbox.tidy(staging=True)
        assert not staged.exists()
    assert outbox.entries() == [entry]


@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"id": "x"}', "null"])
def test_a_damaged_entry_is_passed_over_and_said(outbox, checkpoint, caplog, body):
    damaged, whole = outbox.add(PUSH, checkpoint), outbox.add(PUSH, checkpoint)
    (damaged.folder / "entry.json").write_text(body)
    assert outbox.entries() == [whole]
    (told,) = caplog.messages
    assert re.fullmatch(rf"{damaged.folder}: is damaged and passed over, \w+: .+\. Delete it\.", told, re.DOTALL)


def test_damage_is_said_once_for_each_entry_and_anew_for_a_new_run(outbox, checkpoint, caplog):
    first, second = outbox.add(PUSH, checkpoint), outbox.add(PUSH, checkpoint)
    (first.folder / "entry.json").write_text("{")
    for _ in range(3):
        assert outbox.entries() == [second]
    assert len(caplog.messages) == 1
    (second.folder / "entry.json").write_text("{")
    for _ in range(3):
        assert outbox.entries() == []
    assert [message.partition(":")[0] for message in caplog.messages] == [str(first.folder), str(second.folder)]
    outbox.say_damage_again()
    assert outbox.entries() == []
    assert len(caplog.messages) == 4


def test_a_try_is_remembered_with_the_head_it_was_made_on(outbox, checkpoint):
    entry = outbox.add(PUSH, checkpoint)
    assert entry.tried_on is None
    entry.note_try("abc")
    entry.note_try("def")
    (again,) = outbox.entries()
    assert again.tried_on == "def"
    assert sorted(again.files()) == sorted(entry.files())


def test_only_one_holds_the_lock(outbox):
    with outbox.lock() as first, outbox.lock() as second:
        assert (first, second) == (True, False)
        assert outbox.owner == str(os.getpid())
    with outbox.lock() as again:
        assert again


def test_a_file_system_without_locks_lets_everybody(outbox, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with outbox.lock() as first, outbox.lock() as second:
        assert (first, second) == (True, True)


def test_a_lock_that_is_a_link_is_not_followed(outbox, tmp_path):
    (tmp_path / "mine").write_text("precious")
    outbox.folder.mkdir(parents=True)
    (outbox.folder / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"), outbox.lock():
        pass
    assert (tmp_path / "mine").read_text() == "precious"


USES = {
    "entries": lambda outbox: outbox.entries(),
    "tidy": lambda outbox: outbox.tidy(staging=True),
    "staging": lambda outbox: outbox.staging().__enter__(),
    "lock": lambda outbox: outbox.lock().__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_an_outbox_that_is_a_link_is_not_followed(outbox, tmp_path, use):
    there = tmp_path / "mine" / ".staging-1"
    there.mkdir(parents=True)
    outbox.folder.parent.mkdir()
    outbox.folder.symlink_to(tmp_path / "mine")
    with pytest.raises(PluginError) as caught:
        USES[use](outbox)
    told = "is a link, and no outbox of trainer_core is one. Put the folder itself there, or remove the link."
    assert str(caught.value) == f"{outbox.folder}: {told}"
    assert os.listdir(tmp_path / "mine") == [there.name]


HOLD = """
import sys
from pathlib import Path
from trainer_core_hub_push.outbox import Outbox
with Outbox(Path(sys.argv[1])).lock() as is_ours:
    print(is_ours, flush=True)
    sys.stdin.read()
"""


def test_another_process_keeps_the_lock_until_it_ends(outbox):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(outbox.folder.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "True\n"
    with outbox.lock() as is_ours:
        assert not is_ours
        assert outbox.owner == str(child.pid)
    child.kill()
    child.communicate()
    with outbox.lock() as is_ours:
        assert is_ours


def test_a_forked_child_does_not_keep_the_lock(outbox):
    reader, writer = os.pipe()
    with outbox.lock():
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    with outbox.lock() as is_ours:
        assert is_ours
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)


def test_files_are_copied_whole(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "sub").mkdir(parents=True)
    (source / "one").write_text("one")
    (source / "sub" / "two").write_text("two")
    target.mkdir()
    (target / "one").write_text("older")
    copy_files(source, target, files_in(source))
    assert {name: (target / name).read_text() for name in files_in(target)} == {"one": "one", "sub/two": "two"}


def test_files_are_copied_to_no_place_that_a_link_leads_to(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    (source / "one").write_text("one")
    (tmp_path / "mine").write_text("precious")
    (target / f".one.{os.getpid()}").symlink_to(tmp_path / "mine")
    copy_files(source, target, ["one"])
    assert (target / "one").read_text() == "one"
    assert (tmp_path / "mine").read_text() == "precious"
    assert os.listdir(target) == ["one"]


def test_a_folder_that_is_a_link_is_not_copied_into(tmp_path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "one").write_text("one")
    for name in ("b", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "sub").symlink_to(tmp_path / "mine")
    with pytest.raises(PluginError) as caught:
        copy_files(tmp_path / "a", tmp_path / "b", ["sub/one"])
    assert str(caught.value) == f"{tmp_path}/b/sub: is a link, and is not written through. Remove it."
    assert os.listdir(tmp_path / "mine") == []
