"""The trackers that can be named: what each needs to be installed, and which options act in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Known:
    """A tracker.

    Attributes:
        install: what pip is told to install.
        options: our option -> the keyword of the tracker's own init that it becomes; the empty text where it acts in
            another way.
        modules: any one of them makes it work; the tracker's name when empty.
    """

    install: str
    options: Mapping[str, str]
    modules: tuple[str, ...] = field(default=())


KNOWN: Final[Mapping[str, Known]] = {
    "aim": Known("aim", {"run_name": "", "project": "experiment", "logging_dir": "repo"}),
    "clearml": Known("clearml", {"run_name": "task_name", "project": "project_name"}),
    "comet_ml": Known("comet_ml", {"run_name": "", "project": "project_name"}),
    "dvclive": Known("dvclive", {"run_name": "exp_name"}),
    "mlflow": Known("mlflow", {"run_name": "run_name", "project": "experiment_name"}),
    "swanlab": Known("swanlab", {"run_name": "experiment_name", "project": "project"}),
    "tensorboard": Known(
        "tensorboard", {"run_name": "", "logging_dir": "log_dir"}, modules=("tensorboard", "tensorboardX")
    ),
    "trackio": Known(
        "trackio",
        {
            "run_name": "name",
            "project": "project",
            "trackio_space_id": "space_id",
            "trackio_bucket_id": "bucket_id",
            "trackio_static_space_id": "",
        },
    ),
    "wandb": Known("wandb", {"run_name": "name", "project": "project"}),
}
"""Name in `report_to` -> tracker."""

_CALLBACK: Final = "is none of Accelerate's trackers. Pass {} of transformers to Trainer in callbacks=[...]"
ELSEWHERE: Final[Mapping[str, str]] = {
    "azure_ml": "is MLflow with another address. Use 'mlflow'",
    "codecarbon": _CALLBACK.format("CodeCarbonCallback"),
    "dagshub": "is MLflow with another address. Use 'mlflow' and set MLFLOW_TRACKING_URI",
    "flyte": _CALLBACK.format("FlyteCallback"),
    "kubeflow": _CALLBACK.format("KubeflowCallback"),
    "neptune": _CALLBACK.format("NeptuneCallback"),
}
"""Names of the original that are no trackers here -> what is wrong, and what to do."""


def check_name(name: str) -> None:
    """Raises ValueError for a name that no tracker has."""
    if name in KNOWN or registered(name) is not None:
        return
    if name in ELSEWHERE:
        raise ValueError(f"{name!r} {ELSEWHERE[name]}")
    close = get_close_matches(name, [*KNOWN, "all", "none"], n=1)
    remedy = f"Did you mean {close[0]!r}?" if close else f"Trackers are {', '.join(KNOWN)}"
    raise ValueError(f"knows no tracker {name!r}. {remedy}")


def registered(name: str) -> Any | None:
    """Gives the tracker class that Accelerate knows under a name of the user's own; None when there is none.

    Whoever registered one has imported the module, which is slow to import.
    """
    tracking = sys.modules.get("accelerate.tracking")
    return None if name in KNOWN or tracking is None else tracking.LOGGER_TYPE_TO_CLASS.get(name)


def is_installed(name: str) -> bool:
    """Tells whether a tracker's library can be imported; a folder that a tracker left here is no library."""
    if name not in KNOWN:
        return registered(name) is not None
    specs = (find_spec(module) for module in KNOWN[name].modules or (name,))
    return any(spec is not None and spec.origin is not None for spec in specs)


def chosen(report_to: str | list[str]) -> list[str]:
    """Gives the names of the trackers that are meant, each once; "all" means those that are installed."""
    names = [report_to] if isinstance(report_to, str) else report_to
    if "all" in names:
        return [*filter(is_installed, KNOWN), *(name for name in dict.fromkeys(names) if registered(name) is not None)]
    return list(dict.fromkeys(names))


def missing(names: Iterable[str]) -> list[str]:
    """Gives a sentence for each tracker that is not installed."""
    return [
        f"report_to: {name!r} is not installed. Install it: pip install {KNOWN[name].install}."
        if name in KNOWN
        else f"report_to: nothing is registered in accelerate.tracking as {name!r}. Register its class there."
        for name in names
        if not is_installed(name)
    ]


def options_of(name: str) -> Mapping[str, str]:
    """Gives the options that act in a tracker, with the keywords that they become."""
    if name in KNOWN:
        return KNOWN[name].options
    takes_folder = getattr(registered(name), "requires_logging_directory", False)
    return {"project": "", "logging_dir": ""} if takes_folder else {"project": ""}
