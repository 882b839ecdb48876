"""The settings of the plugin."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from trainer_core import Change, Interval, Section
from trainer_core_logging.levels import LEVELS, OURS

if TYPE_CHECKING:
    from trainer_core import TrainingArguments

Level = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]


def _plain_name(name: str) -> str:
    if PurePath(name).name != name or name in {".", ".."}:
        raise ValueError("must be a file's name without a folder. The file lies in output_dir")
    if name.startswith("journal"):
        raise ValueError("is the name of the run's journal. Use another one")
    return name


FileName = Annotated[str, Field(min_length=1), AfterValidator(_plain_name)]
LoggerName = Annotated[str, Field(min_length=1)]


class LoggingSettings(Section):
    """When a row is logged, where rows are written, and how loud the library's own loggers are."""

    on_by_default: ClassVar[bool] = True
    flat: ClassVar[Mapping[str, str]] = {
        "logging_strategy": "strategy",
        "logging_steps": "steps",
        "logging_first_step": "first_step",
        "log_level": "level",
        "log_level_replica": "level_replica",
        "log_on_each_node": "on_each_node",
    }
    when_changed: ClassVar[Mapping[str, Change]] = dict.fromkeys(
        ("strategy", "steps", "first_step", "level", "level_replica", "on_each_node", "loggers", "file"), Change.free()
    )
    methods: ClassVar[Mapping[str, str]] = {"get_process_log_level": "process_log_level"}

    strategy: Literal["no", "steps", "epoch"] = "steps"
    """When loss, gradient norm and learning rate are logged: never, every `steps` updates, or as each epoch closes."""
    steps: Interval = 500
    """Updates between two rows (1 or more), or the share of all updates (below 1), with strategy "steps"."""
    first_step: bool = False
    """Also log a row after the first update."""
    level: Level = "info"
    """Level of the logger `trainer_core` on a main rank during training; "passive" leaves it, "detail" is "debug"."""
    level_replica: Level = "warning"
    """The same on all other ranks."""
    on_each_node: bool = True
    """Whether the first rank of each node is a main rank; else only rank 0 of all is."""
    loggers: list[LoggerName] = Field(default_factory=list)
    """Further loggers that get the level during training."""
    file: FileName | None = "log.jsonl"
    """File in `output_dir` to which every logged row is appended, one line of JSON each; None for no file."""

    def unread(self, args: TrainingArguments) -> Iterator[tuple[str, str]]:
        """Gives what is read with some strategies alone; evaluations may follow `logging_steps`."""
        if self.strategy != "steps" and "logging_steps" not in args.sources["eval_steps"]:
            yield "logging_steps", f"logging_strategy={self.strategy!r}"
        if self.strategy == "no":
            yield "logging_first_step", "logging_strategy='no'"

    def process_log_level(self, args: TrainingArguments) -> int:
        """Gives the level of this process as a number of the module `logging`, by its rank in the environment."""
        rank = args.local_process_index if self.on_each_node else args.process_index
        level = self.level if rank == 0 else self.level_replica
        return logging.getLogger(OURS).getEffectiveLevel() if level == "passive" else LEVELS[level]
