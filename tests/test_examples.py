"""The larger example runs, on a few rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "text_classification.py"


@pytest.mark.slow
def test_the_transformer_is_trained_compared_and_pushed(tmp_path):
    options = ["--train-rows", "32", "--eval-rows", "16", "--push"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *options], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "Completed 4 steps, 2 epochs" in said
    assert "on the Hub: .gitattributes, README.md, config.json, model.safetensors, tokenizer.json" in said
    assert "accuracy on 16 held-out tweets, after training on 32:" in said
    assert (tmp_path / "runs" / "tweets" / "checkpoint-4" / "manifest.json").is_file()
