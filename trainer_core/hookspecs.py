"""Every hook of the bus, in the order in which a run fires them.

Two kinds, told apart by name. *Told* hooks (`on_…`) return nothing and reach every plugin. *Asked* hooks (a verb)
are questions: the first plugin that answers something other than None decides, and two plugins that answer one
question are refused at the start unless one of them says `before` or `after` the other.

A plugin implements any of them by name, with any subset of their arguments. All hooks but one fire on every rank; a
plugin that acts on one only asks `trainer.is_main_rank`. Counters in `trainer.state` are up to date when a hook fires.
A plugin may read everything and change what the docstring allows; to make the run evaluate, save or stop it calls
`trainer.request(...)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    import torch

    from trainer_core.phases import Phase
    from trainer_core.plan import Plan
    from trainer_core.state import Saving
    from trainer_core.trainer import Trainer

PROJECT: Final = "trainer_core"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

STEP_HOOKS: Final = (
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
)
"""The hooks that fire in every update; they take `trainer` alone and are called from precompiled tuples."""

TOLD_WHEN_DONE: Final = frozenset(
    {
        "on_epoch_begin",
        "on_optimizer_step",
        "on_step_end",
        "on_log",
        "on_evaluate",
        "on_new_best",
        "on_eval_end",
        "on_save",
        "on_epoch_end",
    }
)
"""The hooks that tell of what is done; what a critical plugin raises there ends the run at the next boundary."""


@hookspec
def on_init_end(trainer: Trainer) -> None:
    """The trainer is constructed; nothing is loaded or prepared yet."""


@hookspec
def on_plan(trainer: Trainer, plan: Plan) -> None:
    """The plan is computed, before training or on request.

    May add what the plugin will do: `plan.schedule(...)`, `plan.disk(...)`, `plan.contradict(...)`. Must not train.
    """


@hookspec
def on_train_begin(trainer: Trainer) -> None:
    """Model, optimizer and data are prepared, a checkpoint to resume from is loaded; no update is done yet.

    May change the model (and must undo it in `on_teardown`).
    """


@hookspec
def on_phase(trainer: Trainer, phase: Phase) -> None:
    """A phase is entered: INIT first, before anything is prepared; a run of STEP once, at its first."""


@hookspec
def on_epoch_begin(trainer: Trainer) -> None:
    """An epoch opens. After a resume in the middle of an epoch this fires again for that epoch."""


@hookspec
def on_step_begin(trainer: Trainer) -> None:
    """The micro-batches of an update are fetched; none has been trained on."""


@hookspec
def on_substep_end(trainer: Trainer) -> None:
    """A micro-batch that is not the last of its update has gone forward and backward."""


@hookspec
def on_pre_optimizer_step(trainer: Trainer) -> None:
    """All gradients of an update are there, clipped; the weights are not updated. May change gradients."""


@hookspec
def on_optimizer_step(trainer: Trainer) -> None:
    """The weights are updated; the gradients still stand. May change weights."""


@hookspec
def on_step_end(trainer: Trainer) -> None:
    """An update is done and counted, the learning rate has moved on, the gradients are gone."""


@hookspec
def on_log(trainer: Trainer, logs: Mapping[str, Any]) -> None:
    """A row was logged; it is already the last of `trainer.state.log_history`."""


@hookspec
def on_prediction_step(trainer: Trainer) -> None:
    """A batch of an evaluation or prediction went forward."""


@hookspec
def on_evaluate(trainer: Trainer, metrics: dict[str, float]) -> None:
    """An evaluation is done and logged. May add metrics."""


@hookspec
def on_new_best(trainer: Trainer) -> None:
    """An evaluation in training was better than all before it; `trainer.state.best_metric` holds its value."""


@hookspec
def on_eval_end(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Phase EVAL is done: `metrics` is all that `evaluate` gave, of every dataset. No other evaluation is told."""


@hookspec
def on_predict(trainer: Trainer, metrics: dict[str, float]) -> None:
    """A prediction is done. May add metrics."""


@hookspec
def on_save(trainer: Trainer, checkpoint: Path) -> None:
    """A checkpoint is complete and durable in the folder `checkpoint`.

    The run may be some updates further; `state.global_step` and `state.epoch` are those of the checkpoint meanwhile.
    """


@hookspec
def on_push_begin(trainer: Trainer) -> None:
    """A push of the model or a checkpoint is about to begin or to be queued; on the main rank alone."""


@hookspec
def on_epoch_end(trainer: Trainer) -> None:
    """An epoch closes: its data is used up, or the run stops for good in the middle of it."""


@hookspec
def on_train_end(trainer: Trainer) -> None:
    """Training is over in order (done, stopped or interrupted), the summary is logged."""


@hookspec
def on_exception(trainer: Trainer, error: BaseException) -> None:
    """Training ends because of `error`; it is raised again after the teardown."""


@hookspec
def on_teardown(trainer: Trainer) -> None:
    """The last hook of `train()`, however it ends. Undo here what the plugin did to the model; close files."""


@hookspec(firstresult=True)
def create_optimizer(trainer: Trainer) -> torch.optim.Optimizer | None:
    """Asked once, before training, when the user passed no optimizer: gives one for `trainer.model`."""


@hookspec(firstresult=True)
def create_scheduler(trainer: Trainer, optimizer: torch.optim.Optimizer, num_training_steps: int) -> Any | None:
    """Asked once, before training, when the user passed no scheduler: gives one with `step`, `get_last_lr`."""


@hookspec(firstresult=True)
def compute_loss(trainer: Trainer, model: torch.nn.Module, inputs: Any) -> torch.Tensor | None:
    """Asked for every micro-batch: gives its mean loss. An override of `Trainer.compute_loss` goes before it."""


@hookspec(firstresult=True)
def write_checkpoint(trainer: Trainer) -> Path | Saving | None:
    """Asked in phase SAVE, on every rank: writes a checkpoint and gives its folder, durable when it returns.

    Gives `Saving.BEHIND` where it is written while the training goes on, and says with `Trainer.finish_save`, on all
    ranks, how that ended; `Saving.FAILED` where it was not written and the run is to go on. A plugin that writes
    behind waits for what it writes before it writes again, and before phase STOP.
    """


@hookspec(firstresult=True)
def foresee_checkpoint(trainer: Trainer, source: str | bool) -> Mapping[str, Any] | None:
    """Asked in phase INIT when a run is resumed, on every rank, before model, data and optimizer are made ready.

    Gives the counters of the checkpoint that `read_checkpoint` will load from `source`; None where there is none yet.
    """


@hookspec(firstresult=True)
def read_checkpoint(trainer: Trainer, source: str | bool) -> Path | None:
    """Asked in phase INIT when a run is resumed, on every rank.

    Loads weights and state (`trainer.load_state_dict`) from `source`: a folder, or True for the newest checkpoint in
    `output_dir`. Gives the folder that was loaded.
    """


@hookspec(firstresult=True)
def fetch_checkpoint(trainer: Trainer, source: str) -> Path | None:
    """Asked in phase INIT, on every rank, when a run is to resume from a name that is no folder here.

    Gives the folder into which the checkpoint was fetched; None for a name of another kind.
    """


@hookspec(firstresult=True)
def read_best_model(trainer: Trainer) -> Path | None:
    """Asked in phase STOP, on every rank: loads the best model's weights if the settings want that.

    Gives the folder that was loaded.
    """


@hookspec(firstresult=True)
def push(trainer: Trainer, commit_message: str, blocking: bool, options: Mapping[str, Any]) -> Any | None:
    """Asked by `Trainer.push_to_hub`, on every rank: pushes the model and its card to where models are shared.

    Gives what the pushing tells of the commit; with `blocking` False something that can be waited for.
    """


@hookspec(firstresult=True)
def write_model_card(trainer: Trainer, options: Mapping[str, Any]) -> Path | None:
    """Asked by `Trainer.create_model_card`, on every rank: writes the model's card and gives its file."""


@hookspec(firstresult=True)
def search_hyperparameters(trainer: Trainer, options: Mapping[str, Any]) -> Any | None:
    """Asked by `Trainer.hyperparameter_search`, on every rank: trains with many settings and gives the best run."""


@hookspec(firstresult=True)
def replay_updates(trainer: Trainer, options: Mapping[str, Any]) -> Any | None:
    """Asked by `Trainer.replay`, on every rank: repeats updates of a run and gives how they compare with it."""


HOOKS: Final[Mapping[str, bool]] = {
    name: bool(getattr(value, f"{PROJECT}_spec")["firstresult"])
    for name, value in globals().items()
    if hasattr(value, f"{PROJECT}_spec")
}
"""Name of each hook, and whether it is asked."""
