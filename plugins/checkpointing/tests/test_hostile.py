"""Nothing runs when a checkpoint is loaded, whatever is in its folder, and all that is wrong is refused by name.

Each case is resumed from in a process of its own, with an audit hook and with limited memory: see `hostile_script.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trainer_core
import trainer_core_checkpointing

SCRIPT = Path(__file__).with_name("hostile_script.py")


def load_script():
    spec = importlib.util.spec_from_file_location("hostile_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


hostile = load_script()
CASES = list(hostile.CASES)
TRIED = [(name, way) for place, name in enumerate(CASES) for way in hostile.ways_of(name, place)]
REFUSED = [(name, way) for name, way in TRIED if name in hostile.REFUSED]
HARMLESS = [(name, way) for name, way in TRIED if name in hostile.HARMLESS]
MEGABYTES = 700
"""What a resume may take at most; the largest of the hostile files has 90."""
REMEDIES = (
    "Use another checkpoint.",
    "Remove it, or use another checkpoint.",
    "Pass a folder that a save has written.",
    "Upgrade trainer-core-checkpointing.",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Gives what a resume did, by case and way."""
    folder = tmp_path_factory.mktemp("hostile")
    with (folder / "stderr").open("w") as stderr:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=False,
        )
    assert done.returncode == 0, (folder / "stderr").read_text()[-3000:]
    return {(line["case"], line["way"]): line for line in map(json.loads, done.stdout.splitlines())}


def path_of(way):
    return "checkpoint-6" if way == "best" else "checkpoint-12"


@pytest.mark.parametrize(("name", "way"), TRIED)
def test_nothing_runs_and_nothing_outside_is_written(name, way, told):
    one = told[name, way]
    usual = set(told["nothing", way]["seen"])  # of a resume from a checkpoint that nobody has touched
    assert set(one["seen"]) - usual == set()
    assert not [
        event for event in one["seen"] if event.startswith(("pickle", "exec", "import", "os.system", "marshal"))
    ]
    assert one["outside"], "a file outside has changed, or one is new"


@pytest.mark.parametrize(("name", "way"), TRIED)
def test_it_ends_in_bounded_memory_and_does_not_hang(name, way, told):
    one = told[name, way]
    assert one["kind" if one["error"] else "error"] in ("CheckpointError", ""), one["error"]
    assert one["megabytes"] < MEGABYTES
    assert one["seconds"] < hostile.SECONDS


@pytest.mark.parametrize(("name", "way"), REFUSED)
def test_it_is_refused_by_name_with_a_remedy_and_a_valid_one_is_used(name, way, told):
    one, folder = told[name, way], path_of(way)
    if way == "named":
        reason = one["error"].removesuffix(" The newest valid one is " + one["error"].rpartition(" is ")[2])
        assert one["error"].endswith("/run/checkpoint-6.")
    else:
        (record,) = one["records"]
        reason = record["reason"]
        assert (record["checkpoint"], record["wanted"]) == (folder, way)
        assert one["resumed" if way == "newest" else "best"] == ("checkpoint-6" if way == "newest" else None)
        assert one["step"] == 12
    assert re.match(rf"\S*/run/{folder}(/[^:]+)?: ", reason), reason
    assert reason.endswith(REMEDIES)
    assert reason.isprintable()
    assert len(reason) < 1500


@pytest.mark.parametrize(("name", "way"), HARMLESS)
def test_a_file_without_meaning_is_hashed_and_never_read(name, way, told):
    one = told[name, way]
    assert (one["error"], one["resumed"], one["best"]) == ("", "checkpoint-12", "checkpoint-6")


@pytest.mark.parametrize("name", hostile.OF_ANOTHER_MODEL)
def test_weights_that_fit_another_model_are_refused_and_not_passed_over(name, told):
    error = told[name, "named"]["error"]
    assert re.search(r"/run/checkpoint-12: holds another model; missing there: .* unknown here: ", error)
    assert error.endswith("Build the model as it was when it was saved.")


@pytest.mark.parametrize("name", hostile.OF_ANOTHER_RUN)
def test_a_state_that_the_runs_own_objects_cannot_have_is_refused_by_name(name, told):
    error = told[name, "named"]["error"]
    assert error.startswith(("optimizer: its state in the checkpoint does not fit, ", "lr_scheduler: its state in the"))
    assert ". Resume with the " in error


def test_a_refusal_reads_as_a_sentence_on_the_file(told):
    def reason(name):
        return told[name, "named"]["error"].partition("/run/checkpoint-12/")[2].partition(" The newest")[0]

    use = "Use another checkpoint."
    assert reason("counters.epoch is '1'") == (
        f"state.json: is not consistent, counters.epoch: must be a number, got '1'. {use}"
    )
    assert reason("counters.last_eval_step is 13") == (
        f"state.json: is not consistent, counters.last_eval_step must be at most global_step, 12, got 13. {use}"
    )
    assert reason("counters.best_model_checkpoint is '../checkpoint-6'") == (
        "state.json: is not consistent, counters.best_model_checkpoint: must be the name of a folder, "
        f"got '../checkpoint-6'. {use}"
    )
    assert reason("manifest.json names above") == (
        f"manifest.json: names a file that cannot be in the folder, '../state.json'. {use}"
    )
    assert reason("model.safetensors: overlapping tensors") == (
        f"model.safetensors: is no safetensors, 'b' begins at byte 0 instead of 4. {use}"
    )
    assert reason("model.safetensors is of 2**40 bytes") == (
        f"model.safetensors: needs more memory than the machine has, {2**40 + 92} bytes. {use}"
    )
    assert reason("state.json is a pipe") == ("state.json: is no regular file. Remove it, or use another checkpoint.")
    assert reason("rank-00000.json random_states.numpy.state.pos is 1000000000") == (
        "rank-00000.json: holds random states that cannot be, "
        f"ValueError('numpy: must stand between 0 and 624, got 1000000000'). {use}"
    )


SOURCES = [
    path
    for package in (trainer_core, trainer_core_checkpointing)
    for path in sorted(Path(package.__file__).parent.rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_module_that_saves_or_loads_uses_pickle_or_code_from_a_checkpoint(path):
    text = path.read_text(encoding="utf-8")
    used = (
        r"torch\.load\b|torch\.save\b|import (?:pickle|dill|cloudpickle|joblib|marshal|shelve)|from pickle|allow_pickle"
    )
    assert re.findall(used, text) == []
    assert "trust_remote_code" not in text
