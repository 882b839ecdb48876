"""Trackers that take more than Accelerate's class gives them: names, going on with a run, plan, outcome."""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
from collections.abc import Mapping
from datetime import datetime
from itertools import count
from pathlib import Path
from textwrap import indent
from typing import Any, ClassVar, Final

from trainer_core_trackers.reporter import Reporter, Run, TrackerError
from trainer_core_trackers.rows import Number, Scalar
from trainer_core_trackers.settings import TrackersSettings

STEP: Final = "train/global_step"
"""The horizontal axis where a tracker counts rows by itself."""


class Aim(Reporter):
    """Aim: the run's name is set after its start, by Accelerate."""

    def arguments(self, run: Run) -> tuple[str, ...]:
        """Gives name and repository."""
        return self.settings.run_name or run.output_dir.name, self.settings.logging_dir or str(run.output_dir)

    def keywords(self, run: Run) -> dict[str, Any]:
        """Gives the project as Aim's experiment."""
        return {"experiment": self.project}


class ClearML(Reporter):
    """ClearML: the run is a task of a project; Accelerate takes the group of a metric from before an underscore."""

    project_variable: ClassVar[str] = "CLEARML_PROJECT"

    def log(self, metrics: Mapping[str, Number], step: int) -> None:
        """Reports metrics, each in the diagram of its name as the series of its group."""
        super().log({name.replace("/", "_", 1): value for name, value in metrics.items()}, step)


class Comet(Reporter):
    """Comet: the run's name is set after its start."""

    project_variable: ClassVar[str] = "COMET_PROJECT_NAME"

    def start(self, run: Run) -> None:
        """Starts and names the experiment."""
        super().start(run)
        if self.settings.run_name is not None:
            self.tracker.tracker.set_name(self.settings.run_name)

    def conclude(self, outcome: str, step: int) -> None:
        """Stores the outcome beside the metrics."""
        self.tracker.tracker.log_other("outcome", outcome)


class DVCLive(Reporter):
    """DVCLive: knows no project."""

    def arguments(self, run: Run) -> tuple[str, ...]:
        """Gives nothing: what Accelerate takes there it ignores."""
        return ()


class SwanLab(Reporter):
    """SwanLab."""

    project_variable: ClassVar[str] = "SWANLAB_PROJ_NAME"


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


class TensorBoard(Reporter):
    """TensorBoard: a run is a folder."""

    can_continue: ClassVar[bool] = True

    def __init__(self, name: str, settings: TrackersSettings) -> None:
        super().__init__(name, settings)
        self._folder = Path()
        self._output_dir = Path()

    @property
    def identity(self) -> str | None:
        """The folder, relative to that of the run where it lies in it: that may be moved."""
        inside = self._folder.is_relative_to(self._output_dir)
        return (self._folder.relative_to(self._output_dir) if inside else self._folder).as_posix()

    def start(self, run: Run) -> None:
        """Opens the folder; what a resumed run does again replaces what is there of it."""
        self._output_dir = run.output_dir.resolve()
        self._folder = (self._output_dir / run.continues) if run.continues else self._new_folder().resolve()
        held = holds_events(self._folder)
        super().start(run)
        for metrics, step in run.rows:
            if not held or step >= run.step:
                self.log(metrics, step)

    def arguments(self, run: Run) -> tuple[str, ...]:
        """Gives the folder, in the two parts that Accelerate joins."""
        return self._folder.name, str(self._folder.parent)

    def continuation(self, run: Run) -> dict[str, Any]:
        """Gives the step from which on readers forget what is there."""
        return {"purge_step": run.step} if run.is_resumed and holds_events(self._folder) else {}

    def describe(self, settings: Mapping[str, Scalar], plan: str | None, step: int) -> None:
        """Stores settings and plan as texts."""
        texts = {"settings": json.dumps(dict(settings), indent=2)} | ({} if plan is None else {"plan": plan})
        self.tracker.log({name: indent(text, "    ") for name, text in texts.items()}, step=step)

    def conclude(self, outcome: str, step: int) -> None:
        """Stores the outcome as a text."""
        self.tracker.log({"outcome": outcome}, step=step)

    def _new_folder(self) -> Path:
        """Gives a folder without a run in it."""
        settings = self.settings
        base = Path(settings.logging_dir) if settings.logging_dir is not None else self._output_dir / "runs"
        name = settings.run_name or ("" if settings.logging_dir is not None else _moment())
        candidates = (base / (f"{name or 'run'}-{number}" if number > 1 else name) for number in count(1))
        return next(folder for folder in candidates if not holds_events(folder))


class Trackio(Reporter):
    """Trackio: a run goes on by its name, and its project may become a Space when it is done."""

    can_continue: ClassVar[bool] = True
    keeps_description: ClassVar[bool] = False

    @property
    def identity(self) -> str | None:
        """The run's name."""
        return str(self.tracker.tracker.name)

    def keywords(self, run: Run) -> dict[str, Any]:
        """Gives name, Space and bucket."""
        settings = self.settings
        bucket = settings.trackio_bucket_id if settings.trackio_space_id is not None else None
        hub = {"space_id": settings.trackio_space_id, "bucket_id": bucket}
        return super().keywords(run) | {name: value for name, value in hub.items() if value is not None}

    def continuation(self, run: Run) -> dict[str, Any]:
        """Gives the name of the run that goes on."""
        return {} if run.continues is None else {"name": run.continues, "resume": "must"}

    def describe(self, settings: Mapping[str, Scalar], plan: str | None, step: int) -> None:
        """Stores settings and plan; Accelerate's way would add one of its own."""
        self.tracker.tracker.config.update({**settings, **({} if plan is None else {"plan": plan})})

    def conclude(self, outcome: str, step: int) -> None:
        """Stores the outcome beside the metrics: the configuration went with the first of them."""
        self.tracker.log({"outcome": outcome}, step=step)

    def close(self, outcome: str) -> None:
        """Ends the run."""
        import trackio

        trackio.finish()  # Accelerate's would leave it Trackio's current run, to be ended again

    def publish(self, outcome: str) -> None:
        """Makes the static Space of a run that is done."""
        import trackio

        static, bucket = self.settings.trackio_static_space_id, self.settings.trackio_bucket_id
        space = self.settings.trackio_space_id or os.environ.get("TRACKIO_SPACE_ID")
        if not static or outcome not in ("completed", "stopped"):
            return
        if space is not None:
            trackio.freeze(space_id=space, project=self.project, new_space_id=static)
        else:
            trackio.sync(project=self.project, space_id=static, sdk="static", bucket_id=bucket, force=True)


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


KINDS: Final[Mapping[str, type[Reporter]]] = {
    "aim": Aim,
    "clearml": ClearML,
    "comet_ml": Comet,
    "dvclive": DVCLive,
    "mlflow": MLflow,
    "swanlab": SwanLab,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
}
"""Name in `report_to` -> class; a tracker of the user's own has the base class."""


def holds_events(folder: Path) -> bool:
    """Tells whether a run of TensorBoard is in a folder."""
    return any(folder.glob("events.out.tfevents.*"))


def _moment() -> str:
    return f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}"


def _has_key(wandb: Any) -> bool:
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return wandb.api.api_key is not None
