"""What the launcher told this process, and the names under which scripts of the original ask their arguments for it.

Read from the environment that torchrun and `accelerate launch` set, without torch. What only torch knows is looked up
in the module that does, when it is asked for.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from trainer_core.errors import SettingsError

if TYPE_CHECKING:
    import torch

_RANKS: Final = "trainer_core.ranks"
_SCHEDULES: Final = "trainer_core.optim.schedules"


class ParallelMode(Enum):
    """How a run uses its processes, by the original's values."""

    NOT_PARALLEL = "not_parallel"
    DISTRIBUTED = "distributed"


class Launched:
    """A mixin of `TrainingArguments`."""

    if TYPE_CHECKING:  # what it reads of them; an annotation alone would be a field
        per_device_train_batch_size: int
        per_device_eval_batch_size: int

        def to_dict(self) -> dict[str, Any]:
            """Gives all values."""

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return _told("WORLD_SIZE", 1)

    @property
    def process_index(self) -> int:
        """This process, counted from 0 over all nodes."""
        return _told("RANK", 0)

    @property
    def local_process_index(self) -> int:
        """This process, counted from 0 on its node."""
        return _told("LOCAL_RANK", 0)

    @property
    def local_rank(self) -> int:
        """The same, under the name that scripts print."""
        return self.local_process_index

    @property
    def parallel_mode(self) -> ParallelMode:
        """Whether other processes train the same model."""
        return ParallelMode.DISTRIBUTED if self.world_size > 1 else ParallelMode.NOT_PARALLEL

    @property
    def should_log(self) -> bool:
        """Whether this process is one that logs: the first of its node, or of all without `log_on_each_node`."""
        on_each_node = getattr(self, "log_on_each_node", True)
        return (self.process_index if on_each_node is False else self.local_process_index) == 0

    @property
    def should_save(self) -> bool:
        """Whether this process is the one that writes what is written once."""
        return self.process_index == 0

    @property
    def train_batch_size(self) -> int:
        """Samples a micro-batch of this process."""
        return self.per_device_train_batch_size

    @property
    def eval_batch_size(self) -> int:
        """Samples an evaluation batch of this process."""
        return self.per_device_eval_batch_size

    @property
    def device(self) -> torch.device:
        """The device of this process; sets the processes up where that has not been done."""
        found: torch.device = importlib.import_module(_RANKS).create_accelerator(self).device
        return found

    @property
    def n_gpu(self) -> int:
        """Accelerators that this process uses: 0 or 1."""
        return int(self.device.type != "cpu")

    @contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Lets one process do what is in the context before the others, which then find its result.

        Args:
            local: one of each node; else one of all.
            desc: what is done; for the reader.
        """
        accelerator = importlib.import_module(_RANKS).create_accelerator(self)
        is_first = (self.local_process_index if local else self.process_index) == 0
        if not is_first:
            accelerator.wait_for_everyone()
        try:
            yield
        finally:  # the others wait for one that failed, too
            if is_first:
                accelerator.wait_for_everyone()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Gives the updates of the warm-up, of so many in all."""
        steps: int = importlib.import_module(_SCHEDULES).warmup_steps(self, num_training_steps)
        return steps

    def to_json_string(self) -> str:
        """Gives all values as JSON text, secrets masked."""
        return json.dumps(self.to_dict(), indent=2)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Gives all values, as numbers, truth values and text only, with the batch sizes of this process."""
        sizes = {"train_batch_size": self.train_batch_size, "eval_batch_size": self.eval_batch_size}
        values = {**self.to_dict(), **sizes}
        return {
            name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()
        }


def _told(variable: str, default: int) -> int:
    """Gives a number that the launcher told in the environment."""
    text = os.environ.get(variable, str(default))
    if not text.strip().isdecimal():
        what = f"environment {variable}: must be a whole number, got {text!r}"
        raise SettingsError([f"{what}. Start the script with torchrun or accelerate launch."])
    return int(text)
