"""All that a run needs to go on, as one tree of tensors and JSON values, and back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core.errors import CheckpointError, SettingsError
from trainer_core.optim.optimizers import load_optimizer_state_dict, optimizer_state_dict
from trainer_core.optim.schedule_state import load_schedule_state, schedule_state
from trainer_core.phases import Signal
from trainer_core.settings.change import Kind
from trainer_core.settings.comparison import Difference, differences, saved_settings
from trainer_core.settings.names import PLUGIN_OF, distribution_of

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.snapshot")

_UNKNOWN: Final = "settings: the checkpoint does not hold those of its run. What was changed since then is not known."

_TYPE_OF: Final = {"optim": "optimizer_type", "lr_scheduler_type": "lr_scheduler_type"}
_REGROUPED: Final = "the optimizer would have other groups of parameters than its state in the checkpoint"
_GOES_ON: Final = "the run goes on with that of its checkpoint, start anew to change it"


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Gives the state of a run but the model's weights, the random states and the log history."""
    assert trainer.running is not None
    loop = trainer.running.loop
    return {
        "counters": trainer.state.counters(),
        "settings": saved_settings(trainer.args),
        "optimizer_type": type(trainer.optimizer).__name__,
        "optimizer": optimizer_state_dict(trainer.optimizer),
        "lr_scheduler_type": type(trainer.lr_scheduler).__name__,
        "lr_scheduler": None if trainer.lr_scheduler is None else schedule_state(trainer.lr_scheduler),
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "losses": loop.meter.state_dict(),
        "parts": loop.stepper.parts,
        "pending": None if loop.pending is None else {"by": loop.pending.by, "why": loop.pending.why},
        **loop.plugin_states.state_dict(trainer.bus),
    }


def load_run_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Takes over what `run_state` gave, where the settings allow it; what they changed is said when all is loaded.

    Raises:
        SettingsError: settings have other values and must not; it names all of them.
        CheckpointError: the state of the optimizer or of a plugin does not fit.
    """
    assert trainer.running is not None
    loop = trainer.running.loop
    found = [change for change in _changes(trainer, state) if change.kind != "free"]
    if refused := [change for change in found if change.kind == "refused"]:
        _record(trainer, state, found)
        raise SettingsError([change.problem for change in refused])
    trainer.state.restore(state["counters"])
    try:
        load_optimizer_state_dict(trainer.optimizer, state["optimizer"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"optimizer: its state in the checkpoint does not fit, {error}. "
            f"Resume with the model, optimizer and weight_decay that saved it."
        ) from error
    if trainer.lr_scheduler is not None and state["lr_scheduler"] is not None:
        try:
            load_schedule_state(trainer.lr_scheduler, state["lr_scheduler"])
        except (ValueError, TypeError, KeyError) as error:
            what = f"lr_scheduler: its state in the checkpoint does not fit, {error}"
            raise CheckpointError(f"{what}. Resume with the schedule that saved it.") from error
    if trainer.scaler is not None and state["scaler"] is not None:
        trainer.scaler.load_state_dict(dict(state["scaler"]))
    loop.meter.load_state_dict(state["losses"])
    loop.stepper.parts = int(state["parts"])
    if (pending := state.get("pending")) is not None:
        loop.request(Signal.EVAL, by=str(pending["by"]), why=str(pending["why"]))
    loop.plugin_states.load_state_dict(trainer, state)
    if found and trainer.ranks.is_main:
        head = f"settings changed since the checkpoint of step {trainer.state.global_step}:"
        logger.warning("%s", "\n".join([head, *(f"  {change.line}" for change in found)]))
        _record(trainer, state, found)


def _changes(trainer: Trainer, state: Mapping[str, Any]) -> list[Difference]:
    """Gives what differs from the run that saved `state`: its settings, and what its objects say beside them."""
    found: dict[str, Difference] = {}
    if (saved := state.get("settings")) is not None:
        told = differences(trainer.args, saved, state["counters"], trainer.state.max_steps)
        found = {change.name: change for change in told}
    elif trainer.ranks.is_main:
        logger.warning(_UNKNOWN)
    for change in _changes_of_objects(trainer, state):
        told_so_far = found.setdefault(change.name, change)
        if change.kind == "refused":
            found[change.name] = replace(told_so_far, kind=change.kind, note=change.note)
    return list(found.values())


def _changes_of_objects(trainer: Trainer, state: Mapping[str, Any]) -> Iterator[Difference]:
    """Gives what differs in optimizer and schedule, which may be the user's own."""
    optimizer, lr_scheduler = trainer.optimizer, trainer.lr_scheduler
    for name, own in {"optim": optimizer, "lr_scheduler_type": lr_scheduler}.items():
        own_type = type(own).__name__
        saved_type = state.get(_TYPE_OF[name], own_type)
        if saved_type != own_type:
            yield Difference(
                name, "refused", saved_type, own_type, note="the state in the checkpoint is of another kind"
            )
    groups = state["optimizer"].get("param_groups") or [{}], optimizer.param_groups  # without groups it does not load
    rate = "lr" if lr_scheduler is None else "initial_lr"
    for name, key in {"learning_rate": rate, "weight_decay": "weight_decay"}.items():
        before, now = (group[0].get(key) for group in groups)
        if before is not None and now is not None and float(before) != float(now):
            is_grouped_anew = name == "weight_decay" and len(groups[0]) != len(groups[1])
            kind: Kind = "refused" if is_grouped_anew else "said"
            note = _REGROUPED if is_grouped_anew else _GOES_ON
            yield Difference(name, kind, float(before), float(now), note=note)


def _record(trainer: Trainer, state: Mapping[str, Any], found: list[Difference]) -> None:
    told = {kind: [change.record for change in found if change.kind == kind] for kind in ("said", "refused")}
    trainer.record("settings_changed", step=state["counters"]["global_step"], **told)


def foresee_checkpoint(trainer: Trainer, source: str | bool) -> str | bool:
    """Fetches the checkpoint that `source` means where it is not here, and takes over what the data is made by.

    Returns:
        What to load it from.

    Raises:
        CheckpointError: no plugin reads checkpoints.
    """
    if not trainer.bus.listens("read_checkpoint"):
        plugin = PLUGIN_OF["resume_from_checkpoint"]
        raise CheckpointError(
            f"resume_from_checkpoint: no plugin reads checkpoints. "
            f"Install {distribution_of(plugin)} or unblock {plugin!r}."
        )
    if isinstance(source, str) and not Path(source).exists():
        fetched = trainer.bus.ask("fetch_checkpoint", trainer=trainer, source=source)
        source = source if fetched is None else str(fetched)
    counters = trainer.bus.ask("foresee_checkpoint", trainer=trainer, source=source)
    for name in ("global_batch_size", "data_window"):
        setattr(trainer.state, name, int((counters or {}).get(name, 0)))
    return source


def load_checkpoint(trainer: Trainer, source: str | bool) -> None:
    """Resumes from `source` through the plugin that reads checkpoints; where nothing was saved yet the run begins anew.

    Raises:
        CheckpointError: there is none of that name.
    """
    folder = trainer.bus.ask("read_checkpoint", trainer=trainer, source=source)
    if folder is None and source is True:
        logger.info("resume_from_checkpoint: nothing was saved in %s yet; the run begins.", trainer.args.output_dir)
    elif folder is None:
        raise CheckpointError(
            f"resume_from_checkpoint: there is no checkpoint, got {source!r}. Pass False to start anew."
        )
    trainer.resumed_from = folder
