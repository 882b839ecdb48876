"""What the state in a checkpoint must look like before a run takes it over: types, ranges, and what follows from what.

Names that are not known here are left alone: a newer version, or another plugin, may have put them there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trainer_core import InvalidCheckpointError
from trainer_core_checkpointing.manifest import Manifest
from trainer_core_checkpointing.mistakes import Count, first_mistake
from trainer_core_checkpointing.random_states import check as check_random_states


def _a_number(value: object) -> object:
    """Lets finite numbers pass, and tensors and tuples of them, which some optimizers have."""
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if not is_finite or isinstance(value, str | bytes | Mapping | list | None):
        raise ValueError("must be a finite number")
    return value


def _a_folder(name: str) -> str:
    if PurePosixPath(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise ValueError(f"must be the name of a folder, got {name[:80]!r}")
    return name


_Step: TypeAlias = Annotated[int, Field(ge=-1, lt=2**63)]
_Rate: TypeAlias = Annotated[Any, AfterValidator(_a_number)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


_PartKind = TypeVar("_PartKind", bound=_Part)


class _Stop(_Part):
    by: str
    why: str


class _Settings(_Part):
    values: dict[str, Any]
    sources: dict[str, Any]


class _Counters(_Part):
    epoch: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    global_step: Count
    max_steps: Count
    epochs_done: Count
    batches_done: Count
    epoch_is_open: bool
    num_samples_seen: Count
    num_input_tokens_seen: Count
    best_metric: float | None
    best_global_step: Count | None
    best_model_checkpoint: Annotated[str, AfterValidator(_a_folder)] | None
    stopped_by: _Stop | None
    last_eval_step: _Step
    last_save_step: _Step
    global_batch_size: Count = 0
    data_window: Count = 0

    def contradiction(self) -> str | None:
        """Gives what cannot be: something that was done at a step that the run has not come to."""
        for name in ("best_global_step", "last_eval_step", "last_save_step"):
            step = getattr(self, name)
            if step is not None and step > self.global_step:
                return f"counters.{name} must be at most global_step, {self.global_step}, got {step}"
        return None


class _Group(_Part):
    params: list[Any]
    lr: _Rate
    weight_decay: _Rate = 0.0
    initial_lr: _Rate = 0.0
    eps: _Rate = 0.0


class _Optimizer(_Part):
    state: dict[Any, Any]
    param_groups: Annotated[list[_Group], Field(min_length=1)]


class _Shared(_Part):
    counters: _Counters
    optimizer_type: str
    optimizer: dict[str, Any]
    lr_scheduler: dict[str, Any] | None
    scaler: dict[str, Any] | None
    settings: _Settings | None = None
    pending: _Stop | None = None
    plugin_versions: dict[str, int] = {}


class _Losses(_Part):
    total: float
    updates: Count
    window_sum: float
    window_updates: Count
    grad_norm: float | None
    learning_rate: float | None


class _Own(_Part):
    losses: _Losses
    parts: Annotated[int, Field(ge=1, le=2**20)]
    plugins: dict[str, Any]
    random_states: dict[str, Any]


_OPTIMIZER_KEYS: Final = {"state", "param_groups"}


def check_shared(state: Any, manifest: Manifest, file: Path) -> None:
    """Checks what is equal on all ranks.

    Raises:
        InvalidCheckpointError: it is not what a run can go on with.
    """
    shared = _parsed(_Shared, state, file)
    step = shared.counters.global_step
    if step != manifest.step:
        raise InvalidCheckpointError(file, f"is of step {step}, not {manifest.step}")
    if contradiction := shared.counters.contradiction():
        raise InvalidCheckpointError(file, f"is not consistent, {contradiction}")
    if state["optimizer"].keys() >= _OPTIMIZER_KEYS:  # one of torch's kind; others say it in their own way
        _parsed(_Optimizer, state["optimizer"], file)


def check_counters(counters: Any, file: Path) -> None:
    """Checks counters that stand alone; as `check_shared`."""
    if contradiction := _parsed(_Counters, counters, file).contradiction():
        raise InvalidCheckpointError(file, f"is not consistent, {contradiction}")


def check_own(state: Any, file: Path) -> None:
    """Checks what is a rank's own.

    Raises:
        InvalidCheckpointError: as `check_shared`.
    """
    own = _parsed(_Own, state, file)
    try:
        check_random_states(own.random_states)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        raise InvalidCheckpointError(file, f"holds random states that cannot be, {error!r}") from error


def _parsed(kind: type[_PartKind], state: Any, file: Path) -> _PartKind:
    try:
        return kind.model_validate(state)
    except ValidationError as error:
        raise InvalidCheckpointError(file, first_mistake(error)) from None
