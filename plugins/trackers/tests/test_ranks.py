"""Several ranks make one run in a tracker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(__file__).with_name("ranks_script.py")


@pytest.mark.slow
def test_the_main_rank_alone_reports(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "rank-0").read_text() == "['tensorboard'] {'runs': {'tensorboard': 'runs/one'}}"
    assert (tmp_path / "rank-1").read_text() == "[] {'runs': {}}"
    events = EventAccumulator(str(tmp_path / "run" / "runs" / "one"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 9, 12]
    assert [event.step for event in events.Scalars("test/loss")] == [12]
