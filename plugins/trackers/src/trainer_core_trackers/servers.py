"""MLflow and Weights & Biases: runs have an id and a status, and the caller may have one open."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from trainer_core_trackers.reporter import Reporter, Run, TrackerError
from trainer_core_trackers.rows import Number, Scalar
from trainer_core_trackers.settings import TrackersSettings

STEP: Final = "train/global_step"
"""The horizontal axis where a tracker counts rows by itself."""


class MLflow(Reporter):
    """MLflow: runs have a status; parameters are written once; a run of the caller's own is used and left open."""

    can_continue: ClassVar[bool] = True
    project_variable: ClassVar[str] = "MLFLOW_EXPERIMENT_NAME"
    _STATUS: ClassVar[Mapping[str, str]] = {"failed": "FAILED", "interrupted": "KILLED"}

    def __init__(self, name: str, settings: TrackersSettings) -> None:
        super().__init__(name, settings)
        self._is_callers = False
        self._is_described = False

    @property
    def identity(self) -> str | None:
        """The run's id."""
        return None if self._is_callers else str(self.tracker.tracker.info.run_id)

    def start(self, run: Run) -> None:
        """Starts a run, or takes the one that the caller has open."""
        import mlflow

        active = mlflow.active_run()
        if active is None:
            super().start(run)
            self._is_described = run.continues is not None
            return
        from accelerate.tracking import MLflowTracker

        self.tracker, self._is_callers = MLflowTracker(self.project), True
        self.tracker.active_run = active

    def continuation(self, run: Run) -> dict[str, Any]:
        """Gives the id of the run that goes on."""
        return {} if run.continues is None else {"run_id": run.continues}

    def describe(self, settings: Mapping[str, Scalar], plan: str | None, step: int) -> None:
        """Stores settings as parameters, once, and the plan as a tag, or as a file where it is too long for one."""
        import mlflow
        from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

        if not self._is_described:
            self.tracker.store_init_configuration(dict(settings))
        short = None if plan is None else json.dumps(json.loads(plan), separators=(",", ":"))
        if short is not None and len(short) <= MAX_TAG_VAL_LENGTH:
            mlflow.set_tag("plan", short)
        elif short is not None:
            mlflow.log_text(short, "plan.json")

    def log(self, metrics: Mapping[str, Number], step: int) -> None:
        """Reports metrics; in names MLflow takes letters, digits and a few signs."""
        super().log({re.sub(r"[^\w\-. :/]", "_", name): value for name, value in metrics.items()}, step)

    def conclude(self, outcome: str, step: int) -> None:
        """Stores the outcome as a tag."""
        import mlflow

        mlflow.set_tag("outcome", outcome)

    def close(self, outcome: str) -> None:
        """Ends the run with its status."""
        import mlflow

        if not self._is_callers:
            mlflow.end_run(self._STATUS.get(outcome, "FINISHED"))


class WandB(Reporter):
    """Weights & Biases: counts rows by itself, so the update is a metric; a run of the caller's own is left open."""

    can_continue: ClassVar[bool] = True
    project_variable: ClassVar[str] = "WANDB_PROJECT"
    _EXIT_CODES: ClassVar[Mapping[str, int]] = {"failed": 1, "interrupted": 130}

    def __init__(self, name: str, settings: TrackersSettings) -> None:
        super().__init__(name, settings)
        self._is_callers = False

    @property
    def identity(self) -> str | None:
        """The run's id."""
        return None if self._is_callers else str(self.tracker.tracker.id)

    def start(self, run: Run) -> None:
        """Starts a run without ever asking for a login, or takes the one that the caller has open."""
        import wandb

        if wandb.run is not None:
            from accelerate.tracking import WandBTracker

            self.tracker, self._is_callers = WandBTracker(self.project), True
            self.tracker.run = wandb.run
        else:
            self._check_login()
            super().start(run)
        self.tracker.tracker.define_metric(STEP)
        self.tracker.tracker.define_metric("*", step_metric=STEP, step_sync=True)

    def continuation(self, run: Run) -> dict[str, Any]:
        """Gives the id of the run that goes on."""
        return {} if run.continues is None else {"id": run.continues, "resume": "allow"}

    def describe(self, settings: Mapping[str, Scalar], plan: str | None, step: int) -> None:
        """Stores settings and plan in the run's configuration."""
        super().describe(settings, None, step)
        if plan is not None:
            self.tracker.tracker.config.update({"plan": json.loads(plan)}, allow_val_change=True)

    def log(self, metrics: Mapping[str, Number], step: int) -> None:
        """Reports metrics with the update beside them; W&B's own count of rows never goes back."""
        self.tracker.log({**metrics, STEP: step})

    def conclude(self, outcome: str, step: int) -> None:
        """Stores the outcome in the run's summary."""
        self.tracker.tracker.summary["outcome"] = outcome

    def close(self, outcome: str) -> None:
        """Ends the run with its exit code."""
        if not self._is_callers:
            self.tracker.tracker.finish(exit_code=self._EXIT_CODES.get(outcome, 0))

    def _check_login(self) -> None:
        import wandb

        mode = self.settings.init_kwargs.get(self.name, {}).get("mode") or wandb.setup().settings.mode
        if mode in ("offline", "disabled", "dryrun") or _has_key(wandb):
            return
        raise TrackerError("not logged in. Set WANDB_API_KEY, run `wandb login` once, or set WANDB_MODE=offline")


def _has_key(wandb: Any) -> bool:
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return wandb.api.api_key is not None
