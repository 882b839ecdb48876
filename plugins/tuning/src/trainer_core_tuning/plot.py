"""The picture of a search: how the objective went over the trials, and over each parameter."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core import replace_file
from trainer_core_tuning.trials import begun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna.study import Study
    from optuna.trial import FrozenTrial

COLUMNS: Final = 3
"""Panels side by side."""
MAX_PARAMETERS: Final = 11
"""Parameters with a panel of their own; the most important ones."""
COLORS: Final = {"COMPLETE": "#1b6ca8", "PRUNED": "#c9a227"}
"""State -> color of its points."""
LINE: Final = "#333333"


def draw(study: Study, path: Path) -> None:
    """Draws every trial that has an objective; one row of panels for each of several objectives."""
    from matplotlib.figure import Figure

    trials = [trial for trial in begun(study) if trial.values is not None]
    if not trials:
        return
    shares = _importances(study)
    unranked = {name for trial in trials for name in trial.params} - shares.keys()
    names = [*sorted(shares, key=lambda name: -shares[name]), *sorted(unranked)][:MAX_PARAMETERS]
    objectives = range(len(study.directions))
    rows = math.ceil((len(names) + 1) / COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3 * rows * len(objectives)), layout="constrained")
    for objective in objectives:
        axes = [figure.add_subplot(rows * len(objectives), COLUMNS, objective * rows * COLUMNS + place + 1)
                for place in range(len(names) + 1)]  # fmt: skip
        _history(axes[0], study, trials, objective)
        for panel, name in zip(axes[1:], names, strict=True):
            _slice(panel, trials, name, objective, shares.get(name))
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix("."))
    replace_file(path, content.getvalue())


def _history(axes: Axes, study: Study, trials: Sequence[FrozenTrial], objective: int) -> None:
    """Draws the objective of each trial, and the best so far."""
    _points(axes, trials, [trial.number for trial in trials], objective)
    best = min if study.directions[objective].name == "MINIMIZE" else max
    steps: list[tuple[int, float]] = []
    for trial in trials:
        if trial.state.name == "COMPLETE":
            value = trial.values[objective]
            steps.append((trial.number, best(value, steps[-1][1]) if steps else value))
    if steps:
        steps.append((trials[-1].number, steps[-1][1]))
        numbers, bests = zip(*steps, strict=True)
        axes.step(numbers, bests, where="post", color=LINE, linewidth=1, label="best so far")
    axes.set_xlabel("trial")
    _scale(axes, trials, objective)
    axes.set_title("trials")
    axes.legend(fontsize="small")


def _slice(axes: Axes, trials: Sequence[FrozenTrial], name: str, objective: int, share: float | None) -> None:
    """Draws the objective over one parameter."""
    own = [trial for trial in trials if name in trial.params]
    distribution: Any = own[-1].distributions[name]
    given = [trial.params[name] for trial in own]
    is_text = hasattr(distribution, "choices")
    _points(axes, own, [str(value) for value in given] if is_text else given, objective)
    if getattr(distribution, "log", False):
        axes.set_xscale("log")
    axes.set_xlabel(name)
    _scale(axes, trials, objective)
    axes.set_title(name if share is None else f"{name}: importance {share:.0%}")


def _points(axes: Axes, trials: Sequence[FrozenTrial], places: Sequence[Any], objective: int) -> None:
    for state, color in COLORS.items():
        points = [
            (place, trial.values[objective])
            for place, trial in zip(places, trials, strict=True)
            if trial.state.name == state and math.isfinite(trial.values[objective])
        ]
        if points:
            across, up = zip(*points, strict=True)
            axes.scatter(across, up, s=18, color=color, label=state.lower())


def _scale(axes: Axes, trials: Sequence[FrozenTrial], objective: int) -> None:
    """Names the axis of an objective; a run that diverged must not flatten all others."""
    axes.set_ylabel("objective" if len(trials[0].values) == 1 else f"objective {objective}")
    values = [trial.values[objective] for trial in trials if math.isfinite(trial.values[objective])]
    if values and 0 < 10 * min(values) < max(values):
        axes.set_yscale("log")


def _importances(study: Study) -> dict[str, float]:
    """Gives each parameter's share in how much the objective varies; empty where the trials do not tell."""
    complete = [trial for trial in begun(study) if trial.state.name == "COMPLETE"]
    values = {trial.values[0] for trial in complete}
    if len(complete) < 4 or len(values) < 2 or len(study.directions) > 1:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
