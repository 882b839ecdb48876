"""`python -m trainer_core replay`, as a user calls it; and the README, which runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SCRIPT = """
import sys

import torch

from trainer_core import Trainer, TrainingArguments
from trainer_core.testing import tiny_dataset, tiny_model

factor = float(sys.argv[2])


class Scaled(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        return super().compute_loss(model, inputs) * factor


class Loud:
    def on_save(self):
        print("saved")


if __name__ == "__main__":
    torch.set_num_threads(1)
    args = TrainingArguments(
        sys.argv[1], per_device_train_batch_size=4, num_train_epochs=2, save_steps=4, digest_steps=1,
        digest_parameter_steps=4, dataloader_num_workers=1,
    )
    trainer = Scaled(tiny_model(), args, train_dataset=tiny_dataset(), plugins=[Loud()])
    try:
        trainer.train()
    except:
        if factor == 3.0:
            trainer.train()
        raise
    finally:
        print("after train")
    trainer.save_model()
    print("the end")
"""


def python(*arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives a folder with a script and the run that it did."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = python("script.py", "run", "1.0", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def replay(folder, *arguments):
    done = python("-m", "trainer_core", "replay", *arguments, folder=folder)
    return done.returncode, done.stdout, done.stderr


TABLE = """\
run: updates 5 to 8, repeated from checkpoint 4

update  samples  batch  loss  grad_norm  parameters
4       -        -      -     -          same
5       same     same   same  same       -
6       same     same   same  same       -
7       same     same   same  same       -
8       same     same   same  same       same

The same: 5 recorded update(s), all that was recorded of them, to the bit.
after train
"""


@pytest.mark.slow
def test_the_same_script_gives_the_same_and_ends_where_it_would_have_trained(folder, snapshot):
    before = snapshot(folder / "run")
    code, out, err = replay(folder, "run", "--from", 4, "--steps", 4, "script.py", "run", "1.0")
    assert (code, out) == (0, TABLE), err
    assert snapshot(folder / "run") == before


@pytest.mark.slow
def test_another_script_gives_a_difference_and_exit_code_1(folder, snapshot):
    before = snapshot(folder / "run")
    code, out, _ = replay(folder, "run", "--from", 4, "--steps", 4, "script.py", "run", "1.000001")
    assert code == 1
    assert re.search(r"\n5       same     same   differs  ", out)
    assert re.search(r"\nThe first difference: update 5, loss: recorded [0-9.]+, now [0-9.]+\.\nafter train\n", out)
    assert snapshot(folder / "run") == before


@pytest.mark.slow
def test_a_script_that_catches_everything_and_trains_again_does_not_train(folder, snapshot):
    before = snapshot(folder / "run")
    code, out, _ = replay(folder, "run", "--from", 0, "--steps", 1, "script.py", "run", "3.0")
    assert (code, out.count("The first difference: update 1, loss"), "saved" in out) == (1, 1, False)
    assert snapshot(folder / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "--from", 4, "--steps", 4, "nothing.py"), "script: is no file, got 'nothing.py'. Name the script that "
                                                          "trained.\n"),
        (("run", "--from", 5, "--steps", 4, "script.py", "run", "1.0"), "from_step: run has no checkpoint of this "
         "update, got 5. Begin from one of 4, 8, 12, or from 0.\n"),
        (("run", "--from", 12, "--steps", 4, "script.py", "run", "1.0"), "run/journal.jsonl: holds no digests of "
         "updates 13 to 16, the last of which it does is 12. Begin from an earlier checkpoint.\n"),
        (("run", "--from", 4, "--steps", 4, "script.py"), "list index out of range\n"),
        (("run", "--from", 4, "--steps", 4, "idle.py"), "script: ended without calling train(), got 'idle.py'. Name "
                                                       "one that does.\n"),
        (("run", "--from", 4, "--steps", 4, "leaving.py"), "script: ended with 'sorry' before it trained. Look at "
                                                          "what it says.\n"),
        (("run", "--from", "x", "--steps", 4, "script.py"), "argument --from: must be a whole number from 0, got "
                                                           "'x'\n"),
        (("run", "--from", 4, "--steps", 0, "script.py"), "argument --steps: must be a whole number from 1, got '0'\n"),
        (("run", "--steps", 4, "script.py"), "the following arguments are required: --from\n"),
    ],
    ids=["no script", "no checkpoint", "past the end", "error", "no train", "leaves", "from", "steps", "without from"],
)  # fmt: skip
def test_what_cannot_be_compared_ends_with_2_and_says_what_to_do(folder, arguments, told):
    (folder / "idle.py").write_text("print('idle')\n", encoding="utf-8")
    (folder / "leaving.py").write_text("import sys\nsys.exit('sorry')\n", encoding="utf-8")
    code, out, err = replay(folder, *arguments)
    assert (code, "same" in out) == (2, False)
    assert err.endswith((f"python -m trainer_core replay: {told}", f": error: {told}")), err


@pytest.mark.slow
def test_the_blocks_of_the_readme_run(tmp_path):
    outputs = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL):
        if language == "python":
            (tmp_path / re.match(r"# (\S+)\n", block)[1]).write_text(block, encoding="utf-8")
        else:
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "-e", "-c", block], cwd=tmp_path, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
                capture_output=True, text=True, timeout=240, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            outputs.append(done.stdout)
    steady, unsteady = outputs
    assert steady.endswith("The same: 21 recorded update(s), all that was recorded of them, to the bit.\n")
    assert (
        "\n10      -        -      -        -          same\n11      same     same   differs  differs    -\n"
        in unsteady
    )
    assert re.search(r"The first difference: update 11, loss: recorded [0-9.]+, now [0-9.]+\.\n$", unsteady)
