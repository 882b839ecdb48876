"""The settings of the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from trainer_core import Change, Section

SamplerName = Literal["tpe", "random", "grid", "qmc", "cmaes", "gp", "nsgaii", "nsgaiii", "brute_force"]
PrunerName = Literal[
    "none", "median", "percentile", "hyperband", "successive_halving", "threshold", "patient", "wilcoxon"
]


def _plain_name(name: str) -> str:
    if PurePath(name).name != name or name in {".", ".."}:
        raise ValueError("must be a file's name without a folder. The file lies in output_dir")
    return name


def _drawn(name: str) -> str:
    if PurePath(name).suffix not in {".svg", ".png", ".pdf"}:
        raise ValueError("must end in .svg, .png or .pdf. The ending is the format")
    return _plain_name(name)


Name = Annotated[str, Field(min_length=1)]
TableName = Annotated[str, Field(min_length=1), AfterValidator(_plain_name)]
PlotName = Annotated[str, Field(min_length=1), AfterValidator(_drawn)]


class TuningSettings(Section):
    """How `Trainer.hyperparameter_search` proposes settings, ends bad trials early, and keeps what it found."""

    on_by_default: ClassVar[bool] = True
    when_changed: ClassVar[Mapping[str, Change]] = {
        "storage": Change.free(),
        "study_name": Change.free(),
        "sampler": Change.free(),
        "sampler_options": Change.free(),
        "pruner": Change.free(),
        "pruner_options": Change.free(),
        "timeout_seconds": Change.free(),
        "catch": Change.free(),
        "report": Change.free(),
        "table": Change.free(),
        "plot": Change.free(),
    }

    storage: Name = "tuning.db"
    """Where trials are kept: a file of SQLite, relative to `output_dir`, or a URL of a database that Optuna takes."""
    study_name: Name = "tuning"
    """Name of the search in the storage; a search of the same name goes on."""
    sampler: SamplerName = "tpe"
    """What proposes settings; it starts from the run's seed."""
    sampler_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of Optuna's class of that sampler."""
    pruner: PrunerName = "median"
    """What ends trials that look bad in an evaluation; "none" lets each finish."""
    pruner_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of Optuna's class of that pruner."""
    timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    """No trial begins after so many seconds of a call; None for no limit."""
    catch: list[Name] = Field(default_factory=lambda: ["trainer_core.NonFiniteLossError"])
    """Errors that only fail their trial, by name, like "torch.OutOfMemoryError"; any other ends the search."""
    report: bool = True
    """Whether each trial's outcome and a table of all are printed, on the main rank."""
    table: TableName | None = "trials.csv"
    """File in `output_dir` with one row a trial, written as the search ends; None for no file."""
    plot: PlotName | None = "tuning.svg"
    """Picture in `output_dir` of all trials, drawn as the search ends where matplotlib is installed; None for none."""
