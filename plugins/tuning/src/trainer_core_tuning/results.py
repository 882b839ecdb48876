"""What a search gives: the best run, a table of all trials as a file and on the screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trainer_core import replace_file

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.table import Table


KILLED: Final = "its process ended"
"""Why a trial failed that could not say so itself."""


class BestRun(NamedTuple):
    """The best of the trials.

    Attributes:
        run_id: number of the trial, as text.
        objective: what it reached; a list when there are several objectives.
        hyperparameters: name -> value, as they were suggested.
        run_summary: mapping with `settings` (what it was trained with), `metrics` (of the evaluation that counts),
            `output_dir` (its folder) and `num_trials` (how many the search has tried).
    """

    run_id: str
    objective: float | list[float]
    hyperparameters: dict[str, Any]
    run_summary: Mapping[str, Any] | None = None


def best_run(trial: FrozenTrial, folder: Path, num_trials: int) -> BestRun:
    """Gives a trial that completed as what a search returns."""
    values = list(trial.values)
    summary = {
        "settings": trial.user_attrs["settings"],
        "metrics": trial.user_attrs["metrics"],
        "output_dir": str(folder / trial.user_attrs["run"]),
        "num_trials": num_trials,
    }
    return BestRun(str(trial.number), values[0] if len(values) == 1 else values, dict(trial.params), summary)


def in_words(values: Mapping[str, Any]) -> str:
    """Gives names and values for a line of text."""
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def objectives_in_words(values: Sequence[float] | None) -> str:
    """Gives objectives for a line of text; a dash for none."""
    return "–" if values is None else ", ".join(f"{value:.6g}" for value in values)


def write_table(path: Path, trials: Sequence[FrozenTrial], num_objectives: int) -> None:
    """Writes one row a trial; the file is whole or as it was before."""
    names = _parameters(trials)
    objectives = ["objective"] if num_objectives == 1 else [f"objective_{place}" for place in range(num_objectives)]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["number", "run", "state", *objectives, "seconds", *names, "why"])
    for trial in trials:
        values = trial.values if trial.values is not None else [""] * num_objectives
        given = [trial.params.get(name, "") for name in names]
        attrs = trial.user_attrs
        why = attrs.get("why", KILLED if trial.state.name == "FAIL" else "")
        fixed = [trial.number, attrs.get("run", ""), trial.state.name]
        rows.writerow([*fixed, *values, seconds_of(trial), *given, why])
    replace_file(path, text.getvalue().encode())


def table_of(trials: Sequence[FrozenTrial], best: Sequence[int]) -> Table:
    """Gives the table for the screen; the best trials stand out."""
    from rich.table import Table
    from rich.text import Text

    names = _parameters(trials)
    table = Table(title="trials", title_justify="left", caption="* best", caption_justify="left")
    for column in ("trial", "state", "objective", "seconds", *names):
        table.add_column(column, justify="left" if column == "state" else "right", overflow="fold")
    for trial in trials:
        is_best = trial.number in best
        number = f"* {trial.number}" if is_best else str(trial.number)
        cells = [number, trial.state.name.lower(), objectives_in_words(trial.values), str(seconds_of(trial))]
        cells += [_short(trial.params[name]) if name in trial.params else "" for name in names]
        table.add_row(*map(Text, cells), style="bold" if is_best else "")
    return table


def seconds_of(trial: FrozenTrial) -> float | str:
    """Gives how long a trial took, from proposal to outcome."""
    return "" if trial.duration is None else round(trial.duration.total_seconds(), 2)


def _parameters(trials: Sequence[FrozenTrial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
