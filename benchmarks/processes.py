"""The cases that need fresh processes: imports, first forward, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Row
from benchmarks.turns import Estimate

ROOT = Path(__file__).parent.parent
EVALUATION_TARGET = 1.1
ALL_PLUGINS = "trainer_core, all plugins"


def probe(*arguments: str) -> dict[str, Any]:
    """Gives what a probe prints, from a process of its own.

    It may write byte code, as an installation does: compiling our modules anew would count as importing them.

    Raises:
        RuntimeError: the probe failed.
    """
    command = [sys.executable, "-m", "benchmarks.probes", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if run.returncode:
        raise RuntimeError(f"probe {' '.join(arguments)}: failed\n{run.stderr}")
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def process_rows(rounds: int, *, with_peers: bool) -> Iterator[Row]:
    """Gives the price of imports, of the first forward, and of a tiny run's memory."""
    libraries = ["plain loop", "trainer_core", ALL_PLUGINS, *(["accelerate", "transformers"] if with_peers else [])]
    probe("imports", ALL_PLUGINS)  # writes byte code
    results: dict[str, list[dict[str, Any]]] = {library: [] for library in libraries}
    for _ in range(rounds):
        for library in libraries:
            results[library].append(probe("imports", library))
    for case, unit, target, figure in FIGURES:
        for library in libraries:
            value = Estimate.of([figure(result) for result in results[library]])
            last = results[library][-1]
            note = f"{last['modules_at_the_end']} modules{', torch._dynamo too' if last['has_dynamo'] else ''}"
            yield Row(case, library, unit, value, target if library.startswith("trainer_core") else None, note)


FIGURES: Final[tuple[tuple[str, str, float, Callable[[dict[str, Any]], float]], ...]] = (
    (
        "CPU time of the import",
        "x import torch",
        0.1,
        lambda it: it["import_seconds"] / it["torch_seconds"],
    ),
    ("to the first forward", "x import torch", 0.3, lambda it: it["forward_seconds"] / it["torch_seconds"]),
    ("peak memory of a tiny run", "MB", 260, lambda it: it["peak_mb"]),
)
"""Case, unit, target, and how to read it from a probe."""


def memory_rows(num_samples: int, classes_to_try: tuple[int, ...] = (64, 1000)) -> Iterator[Row]:
    """Gives the rise of memory during an evaluation, over the size of the logits."""
    for classes in classes_to_try:
        for kind in ("plain", "kept", "streamed"):
            result = probe("evaluation_memory", kind, str(classes), str(num_samples))
            case = f"peak memory of an evaluation, {classes:,} classes"
            if result["over_logits"] is None:
                yield Row(case, kind, "x logits", None, None, "needs /proc/self/clear_refs of Linux")
                continue
            value = Estimate.of([result["over_logits"]])
            target = EVALUATION_TARGET if kind == "kept" else None
            name = "plain loop" if kind == "plain" else f"trainer_core, {kind}"
            yield Row(case, name, "x logits", value, target, f"{result['rise_mb']:.1f} MB")
