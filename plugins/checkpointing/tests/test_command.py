"""`python -m trainer_core checkpoints`: what it tells, what it deletes, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer_core import owned
from trainer_core.__main__ import main
from trainer_core_checkpointing.manifest import FileEntry, checksum, read_manifest, write_manifest

PROG = "python -m trainer_core checkpoints"


class PeakAtTwelve:
    """Makes the evaluation after update 12 the best."""

    def on_evaluate(self, trainer, metrics):
        metrics["eval_loss"] = float(abs(trainer.state.global_step - 12))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def run(small, made, tmp_path):
    """Gives a folder with checkpoints 6, 12 and 18, the best of them 12."""
    if not list(made.iterdir()):
        options = {"eval_strategy": "steps", "eval_steps": 6, "load_best_model_at_end": True}
        small.trainer(made, PeakAtTwelve(), save_steps=6, **options).train()
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def asked(capsys):
    """Runs the command and gives exit code, output and errors, as lines."""

    def ask(*words):
        try:
            code = main(["checkpoints", *map(str, words)])
        except SystemExit as left:
            code = left.code
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err.splitlines()

    return ask


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def reseal(folder):
    manifest = read_manifest(folder)
    for name, entry in [*manifest.files.items()]:
        if not entry.grows:
            size = (folder / name).stat().st_size
            manifest.files[name] = FileEntry(size, checksum(folder / name, size))
    write_manifest(folder, manifest)


def snapshot(folder):
    """Gives the content and the dates of everything below a folder."""
    return {path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def columns(lines):
    return [re.split(r"\s{2,}", line) for line in lines]


def test_the_list_has_step_run_date_size_metric_and_state_newest_first(run, asked):
    before = snapshot(run)
    code, out, err = asked(run)
    manifests = {step: read_manifest(run / f"checkpoint-{step}") for step in (18, 12, 6)}
    sizes = {
        step: f"{sum(entry.size for entry in manifest.files.values()) / 1000:.1f} kB"
        for step, manifest in manifests.items()
    }
    rows = map(json.loads, (run / "checkpoint-18" / "log_history.jsonl").read_text().splitlines())
    metrics = {row["step"]: f"eval_loss {row['eval_loss']:.6g}" for row in rows if "eval_loss" in row}
    metrics[12] += " (best)"
    assert columns(out) == [
        ["step", "run", "saved at", "size", "metric", "state"],
        *(
            [str(step), manifest.run, manifest.saved_at, sizes[step], metrics[step], "whole"]
            for step, manifest in manifests.items()
        ),
    ]
    assert (code, err) == (0, [])
    assert snapshot(run) == before


def test_verifying_reads_every_file_and_fails_where_one_is_invalid(run, asked):
    assert asked(run, "--verify")[0::2] == (0, [])
    assert asked(run, "--verify")[1][-1] == "3 valid, 0 not."
    flip(run / "checkpoint-12" / "model.safetensors")
    assert columns(asked(run)[1])[2][-1] == "whole"  # sizes and names are
    code, out, err = asked(run, "--verify")
    file = run / "checkpoint-12" / "model.safetensors"
    assert columns(out)[2][-1] == f"{file}: is damaged, its checksum does not fit. Use another checkpoint."
    assert (code, out[-1], err) == (1, "2 valid, 1 not.", [])


def test_what_is_wrong_at_a_glance_is_in_the_list(run, asked):
    (run / "checkpoint-18" / "state.json").unlink()
    (run / "checkpoint-6" / "manifest.json").unlink()
    (run / "checkpoint-99").mkdir()
    code, out, _ = asked(run)
    assert code == 0
    assert [row[0] for row in columns(out)] == ["step", "18", "12", "99", "6"]
    assert out[1].endswith(f"{run / 'checkpoint-18' / 'state.json'}: is missing. Use another checkpoint.")
    for line, step in ((out[3], 99), (out[4], 6)):
        folder = run / f"checkpoint-{step}"
        assert line.endswith(
            f"{folder}: is no checkpoint, it has no manifest.json. Pass a folder that a save has written."
        )


def test_control_sequences_in_a_checkpoint_reach_no_terminal(run, asked):
    manifest = read_manifest(run / "checkpoint-18")
    object.__setattr__(manifest, "run", "\x1b[2J[red]evil[/red]")
    write_manifest(run / "checkpoint-18", manifest)
    out = "\n".join(asked(run)[1])
    assert "\x1b" not in out
    assert "\\x1b[2J[red]evil[/red]" in out


def test_a_checkpoint_of_the_model_alone_says_so(small, tmp_path, asked):
    small.trainer(tmp_path, save_steps=9, save_only_model=True).train()
    assert [row[-1] for row in columns(asked(tmp_path)[1])[1:]] == ["whole, model alone"] * 2
    assert [row[-1] for row in columns(asked(tmp_path, "--verify")[1])[1:-1]] == ["valid, model alone"] * 2


def test_two_that_are_equal_differ_in_nothing(run, asked):
    code, out, err = asked(run, "--compare", 12, "checkpoint-12")
    assert (code, err) == (0, [])
    assert re.fullmatch(r"\d+ tensors and values of the state are the same, 0 differ\.", out[-1])
    assert len(out) == 1


def test_differences_are_told_one_by_one(run, tmp_path, asked):
    other = tmp_path / "other"
    shutil.copytree(run / "checkpoint-12", other)
    tensors = load_file(other / "model.safetensors")
    tensors["head.bias"] = tensors["head.bias"] + torch.tensor([0.0, 0.5, -0.25])
    tensors["norm.bias"] = tensors["norm.bias"].double()
    tensors["new"] = torch.zeros(2)
    del tensors["hidden.bias"]
    save_file(tensors, other / "model.safetensors")
    state = (other / "state.json").read_text()
    (other / "state.json").write_text(re.sub(r'"epochs_done":\d+', '"epochs_done":7', state))
    manifest = read_manifest(other)
    manifest.settings["learning_rate"] = 0.25
    write_manifest(other, manifest)
    reseal(other)
    code, out, err = asked(run, "--compare", 12, other)
    assert (code, err) == (1, [])
    names = {tuple(row[:2]): row[2] for row in columns(out[1:-1])}
    assert names == {
        ("weights", "head.bias"): "max abs difference 0.5",
        ("weights", "norm.bias"): "float32[6] / float64[6]",
        ("weights", "hidden.bias"): "only in the first",
        ("weights", "new"): "only in the second",
        ("state", "counters.epochs_done"): "1 / 7",
        ("settings", "learning_rate"): "0.05 / 0.25",
    }
    assert columns(out)[0] == ["where", "name", "checkpoint-12 / other"]
    assert out[-1].endswith("the same, 5 differ.")


def test_settings_alone_make_no_difference_of_the_state(run, tmp_path, asked):
    other = tmp_path / "other"
    shutil.copytree(run / "checkpoint-12", other)
    manifest = read_manifest(other)
    manifest.settings["learning_rate"] = 0.25
    write_manifest(other, manifest)
    code, out, _ = asked(run, "--compare", 12, other)
    assert (code, columns(out)[1]) == (0, ["settings", "learning_rate", "0.05 / 0.25"])


def test_bits_count_and_what_is_not_a_number_is_counted(run, tmp_path, asked):
    for name, first in (("one", [0.0, float("nan"), 1.0]), ("two", [-0.0, float("nan"), float("nan")])):
        shutil.copytree(run / "checkpoint-12", tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        tensors["head.bias"] = torch.tensor(first)
        save_file(tensors, tmp_path / name / "model.safetensors")
        reseal(tmp_path / name)
    code, out, _ = asked(run, "--compare", tmp_path / "one", tmp_path / "two")
    assert (code, columns(out)[1][2]) == (1, "max abs difference 0, 2 not a number")


def test_a_damaged_one_is_not_compared(run, asked):
    flip(run / "checkpoint-6" / "state.safetensors")
    code, out, err = asked(run, "--compare", 12, 6)
    file = run / "checkpoint-6" / "state.safetensors"
    told = f"{PROG}: {file}: is damaged, its checksum does not fit. Use another checkpoint."
    assert (code, out, err) == (2, [], [told])


def test_what_is_named_is_deleted(run, asked):
    code, out, err = asked(run, "--delete", 6)
    assert (code, out, err) == (0, [f"deleted {run / 'checkpoint-6'}"], [])
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["checkpoint-12", "checkpoint-18"]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (18, "a run goes on from this one, the newest valid"),
        (12, "the best model is in this one"),
    ],
)
def test_the_newest_valid_and_the_best_are_deleted_by_force_alone(step, why, run, asked):
    before = snapshot(run)
    code, out, err = asked(run, "--delete", 6, step)
    assert (code, out) == (1, [])
    assert err == [f"{PROG}: --delete: {why}, got {step}. Add --force to delete it.", f"{PROG}: nothing was deleted."]
    assert snapshot(run).keys() - before.keys() <= {run / ".owner.json"}
    assert before.keys() - snapshot(run).keys() == set()
    assert asked(run, "--delete", step, 6, "--force")[0] == 0
    assert not (run / f"checkpoint-{step}").exists()


def test_the_newest_valid_is_found_by_its_bytes(run, asked):
    """With the newest damaged in content, the one before it is what a run would go on from."""
    flip(run / "checkpoint-18" / "state.json")
    shutil.rmtree(run / "checkpoint-12")
    assert asked(run, "--delete", 6)[0] == 1
    assert asked(run, "--delete", 18)[:2] == (0, [f"deleted {run / 'checkpoint-18'}"])


def test_what_is_not_ours_is_not_deleted(run, asked):
    (run / "checkpoint-99").mkdir()
    (run / "checkpoint-99" / "pytorch_model.bin").write_bytes(b"theirs")
    code, _, err = asked(run, "--delete", 99, 7, "--force")
    assert code == 1
    assert err == [
        f"{PROG}: --delete: checkpoint-99 is no checkpoint of ours, got 99. Remove it by hand if nobody needs it.",
        f"{PROG}: --delete: there is no checkpoint of this step, got 7. List them first.",
        f"{PROG}: nothing was deleted.",
    ]
    assert (run / "checkpoint-99" / "pytorch_model.bin").read_bytes() == b"theirs"


def test_nothing_is_deleted_while_a_run_owns_the_folder(run, asked):
    with owned(run):
        code, out, err = asked(run, "--delete", 6)
        assert asked(run)[0] == asked(run, "--verify")[0] == asked(run, "--compare", 6, 6)[0] == 0
    assert (code, out) == (2, [])
    assert err[0].startswith(f"{PROG}: output_dir: another run owns it, got {str(run)!r} (process {os.getpid()} on ")
    assert (run / "checkpoint-6").is_dir()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["/no/such/folder"], "output_dir: is no folder, got '/no/such/folder'. Name that of a run."),
        (["RUN", "--force"], "--force: goes with --delete alone. Leave it out."),
        (["RUN", "--compare", "6", "7"], "--compare: there is no such checkpoint, got '7'. Give a step or a folder."),
        (["RUN", "--delete", "x"], "argument --delete: must be a step, a whole number from 0, got 'x'"),
        (["RUN", "--delete", "-1"], "argument --delete: must be a step, a whole number from 0, got '-1'"),
        (["RUN", "--verify", "--delete", "6"], "argument --delete: not allowed with argument --verify"),
        (["RUN", "--compare", "6"], "argument --compare: expected 2 arguments"),
        ([], "the following arguments are required: output_dir"),
    ],
)
def test_misuse_is_said_with_exit_code_two(words, told, run, asked):
    code, out, err = asked(*(run if word == "RUN" else word for word in words))
    assert (code, out) == (2, [])
    assert told in err[-1]


def test_a_folder_without_checkpoints_says_so(tmp_path, asked):
    assert asked(tmp_path) == (0, [f"{tmp_path}: has no checkpoint."], [])


def test_a_terminal_gets_a_table_and_a_pipe_plain_text(run):
    script = f"import sys; from trainer_core.__main__ import main; sys.exit(main(['checkpoints', {str(run)!r}]))"
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert piped.startswith("step  run ")
    assert piped.isascii()
    drawn = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.stdout.isatty = lambda: True; {script}"],
        env=os.environ | {"COLUMNS": "160", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert "│ 12   │" in drawn
    assert "(best)" in drawn
