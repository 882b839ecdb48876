"""Which class serves which tracker, and the trackers that differ from others in little."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from trainer_core_trackers.folders import TensorBoard
from trainer_core_trackers.reporter import Reporter, Run
from trainer_core_trackers.rows import Number, Scalar
from trainer_core_trackers.servers import MLflow, WandB


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
