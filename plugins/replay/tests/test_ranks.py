"""Two processes repeat what two processes did, each by its own journal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("ranks_script.py")


def launch(*arguments):
    """Gives exit code and output of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives the folder of a run of two processes."""
    folder = tmp_path_factory.mktemp("ranks") / "run"
    code, out, err = launch(SCRIPT, folder, -1)
    assert code == 0, out[-2000:] + err[-4000:]
    return folder


def replay(folder, start, steps, scaled):
    return launch("-m", "trainer_core", "replay", folder, "--from", start, "--steps", steps, SCRIPT, folder, scaled)


def test_each_rank_records_its_own_samples_and_the_main_one_the_parameters(folder, digests):
    main, other = (dict(digests(folder / name)) for name in ("journal.jsonl", "journal-rank1.jsonl"))
    assert main.keys() == other.keys() | {0} == {*range(13)}
    of_epoch = [
        [int(row) for step in range(1, 4) for row in records[step]["samples"].partition("rows ")[2].split(", ")]
        for records in (main, other)
    ]
    assert sorted(of_epoch[0] + of_epoch[1]) == [*range(23)]
    assert [("parameters" in main[step], "parameters" in other[step]) for step in (1, 2)] == [
        (False, False),
        (True, False),
    ]
    assert all(main[step]["grad_norm"] == other[step]["grad_norm"] for step in range(1, 13))


def test_it_comes_out_again_to_the_bit(folder, snapshot):
    before = snapshot(folder)
    code, out, err = replay(folder, 4, 8, -1)
    assert code == 0, out + err
    assert out.count("The same: ") == 1
    assert "12      same     same   same  same       same\n" in out
    assert snapshot(folder) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_a_difference_on_either_rank_is_named_with_it(folder, rank):
    code, out, _ = replay(folder, 4, 8, rank)
    assert code == 1, "torchrun's, whatever its processes end with"
    where = " on rank 1" if rank else ""
    assert out.count("The first difference: ") == 1
    assert f"The first difference: update 6{where}, loss: recorded " in out


def test_one_process_cannot_repeat_it(folder):
    command = [sys.executable, "-m", "trainer_core", "replay", folder, "--from", "4", "--steps", "8", SCRIPT, folder]
    done = subprocess.run([*map(str, command), "-1"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "ranks: update 5 was done by 2 process(es), got 1. Start the replay as the run was started" in done.stderr
