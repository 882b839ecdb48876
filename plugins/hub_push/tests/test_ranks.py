import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = "user/first"


@pytest.fixture
def two_ranks(hub, tmp_path):
    """Runs the script on two ranks and gives what each of them told."""

    def run(case):
        environment = {
            **os.environ,
            **hub.environment,
            "HF_TOKEN": "hf_writer",
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        script = Path(__file__).with_name("ranks_script.py")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*launch, script, tmp_path / "first", case],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        lines = sorted(line.split(maxsplit=2) for line in done.stdout.splitlines() if line.startswith("told"))
        return [json.loads(text) for _, _, text in lines]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "own"])
def test_the_main_rank_alone_pushes(hub, two_ranks, case):
    main, other = two_ranks(case)
    files = hub.repo(REPO).files()
    titles = [commit.title for commit in reversed(hub.repo(REPO).commits())]
    assert titles.count("End of training") == 1
    assert "last-checkpoint/rank-00001.json" in files
    assert ("mine.txt" in files) == (case == "own")
    assert main["step"] == other["step"] == 12
    assert main["pushes"]["pushes_failed"] == 0
    assert main["pushes"]["pushes_done"] + main["pushes"]["pushes_replaced"] == 5
    assert main["begun"] == [6, 12, 12, 12]
    assert (main["commit"], other["commit"]) == ("by hand", None)
    assert (other["pushes"], other["begun"]) == ({}, [])


@pytest.mark.slow
def test_a_refused_repository_ends_the_run_on_all_ranks(hub, two_ranks):
    main, other = two_ranks("refused")
    (told,) = main["refused"]
    assert told.startswith("hub_model_id: the Hub refuses 'elsewhere/first', got ")
    assert other["refused"] == main["refused"]
