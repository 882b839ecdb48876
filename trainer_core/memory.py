"""How much memory the constructor, training and evaluations take; nothing is read unless it is asked for.

Stages are measured at their ends, without a thread: on the CPU from `/proc` (resident memory and its high-water mark;
left out where there is none, outside Linux), on a CUDA device from torch's allocator. `*_alloc_delta` is what a stage
kept, in bytes; it is negative where it gave memory back. `*_peaked_delta` is what it had on top of that for a while;
the CPU's mark is that of the whole process, so there it is 0 unless the stage went above all before it.

An evaluation in training is a part of training. Each rank measures itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments

STATUS: Final = Path("/proc/self/status")
_LINE: Final = re.compile(rb"^Vm(HWM|RSS):\s+(\d+) kB$", re.MULTILINE)


class Usage(NamedTuple):
    """Bytes in use now, and the most there were."""

    now: int
    peak: int


class MemoryMeter:
    """Measures one stage after the other, from `begin` to `take`; the constructor's begins with it."""

    def __init__(self, args: TrainingArguments) -> None:
        self.is_on = not args.skip_memory_metrics
        self.has_cuda = self.is_on and not args.use_cpu and torch.cuda.is_available()
        self.before: dict[str, Usage] = {}
        self.of_init: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """Begins a stage."""
        if self.is_on:
            if self.has_cuda:
                torch.cuda.reset_peak_memory_stats()
            self.before = self._usage()

    def take(self, stage: str) -> dict[str, int]:
        """Ends the stage that was begun and gives its metrics, the first time with those of the constructor."""
        if not self.is_on:
            return {}
        of_init, self.of_init = self.of_init, {}
        return of_init | self._deltas(stage)

    def end_init(self) -> None:
        """Ends the constructor's stage; the next one tells of it."""
        if self.is_on:
            before = {f"before_init_mem_{device}": usage.now for device, usage in self.before.items()}
            self.of_init = before | self._deltas("init")

    def _deltas(self, stage: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for device, after in self._usage().items():
            before = self.before[device]
            found[f"{stage}_mem_{device}_alloc_delta"] = after.now - before.now
            has_risen = device == "gpu" or after.peak > before.peak
            found[f"{stage}_mem_{device}_peaked_delta"] = max(0, after.peak - after.now) if has_risen else 0
        return found

    def _usage(self) -> dict[str, Usage]:
        usage = {}
        if STATUS.is_file():
            kilobytes = {name: int(number) for name, number in _LINE.findall(STATUS.read_bytes())}
            usage["cpu"] = Usage(1024 * kilobytes[b"RSS"], 1024 * kilobytes[b"HWM"])
        if self.has_cuda:
            usage["gpu"] = Usage(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
        return usage
