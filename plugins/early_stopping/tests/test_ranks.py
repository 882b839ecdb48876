"""Two processes end together, at the same update and for the same reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("ranks_script.py")
BEST = "eval_score has not risen above its best, 0.72 at step 7, in 2 evaluations"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Gives what each of two ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"results-rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def ended(by, why, step, outcome="stopped"):
    return [step, outcome, by, why, {"by": by, "why": why} if outcome == "stopped" else None]


EXPECTED = {
    "patience": ended("early_stopping", BEST, 9),
    "callback": ended("EarlyStoppingCallback", BEST, 9),
    "cut": ended("cut", "the test says so", 8, "interrupted"),
    "resumed": ended("early_stopping", BEST, 9),
    "finished": ended("early_stopping", BEST, 9),
    "samples": ended("stop_at", "10 samples, max_samples is 9", 5),
    "tokens": ended("stop_at", "32 tokens, max_tokens is 25", 4),
    "one is late": ended("stop_at (rank 1)", "max_time, 1m40s, is spent", 6),
    "both are late": ended("stop_at", "max_time, 1m40s, is spent", 6),
    "nobody is late": ended("max_steps", "all 12 updates are done", 12, "completed"),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_both_ranks_end_at_the_same_update_for_the_same_reason(results, case):
    assert [rank[case] for rank in results] == [EXPECTED[case]] * 2


def test_every_case_is_looked_at(results):
    assert set(results[0]) == set(EXPECTED)
