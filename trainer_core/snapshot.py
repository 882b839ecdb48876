"""All that a run needs to go on, as one tree of tensors and JSON values, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer_core.errors import CheckpointError
from trainer_core.optim.optimizers import load_optimizer_state_dict, optimizer_state_dict
from trainer_core.optim.schedule_state import load_schedule_state, schedule_state
from trainer_core.settings.names import PLUGIN_OF, distribution_of

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.snapshot")


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Gives the state of a run but the model's weights, the random states and the log history."""
    assert trainer.running is not None
    loop = trainer.running.loop
    return {
        "counters": trainer.state.counters(),
        "optimizer_type": type(trainer.optimizer).__name__,
        "optimizer": optimizer_state_dict(trainer.optimizer),
        "lr_scheduler": None if trainer.lr_scheduler is None else schedule_state(trainer.lr_scheduler),
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "losses": loop.meter.state_dict(),
        "parts": loop.stepper.parts,
        "plugins": {
            name: member.plugin.state_dict()
            for name, member in trainer.bus.members.items()
            if hasattr(member.plugin, "state_dict") and hasattr(member.plugin, "load_state_dict")
        }
        | loop.plugin_states_of_absentees,
    }


def load_run_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Takes over what `run_state` gave.

    State of a plugin that is not there is kept for the next checkpoint; a plugin without state in it starts afresh.

    Raises:
        CheckpointError: the optimizer is another one, or its state does not fit.
    """
    assert trainer.running is not None
    loop = trainer.running.loop
    saved, own = state["optimizer_type"], type(trainer.optimizer).__name__
    if saved != own:
        raise CheckpointError(
            f"optim: the checkpoint holds the state of {saved}, got {own}. "
            f"Resume with the optimizer that saved it, or start anew from its weights."
        )
    trainer.state.restore(state["counters"])
    wanted = _rates(trainer.optimizer)
    try:
        load_optimizer_state_dict(trainer.optimizer, state["optimizer"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"optimizer: its state in the checkpoint does not fit, {error}. "
            f"Resume with the model, optimizer and weight_decay that saved it."
        ) from error
    for name, restored in _rates(trainer.optimizer).items():
        if restored != wanted[name]:
            told = "%s: the run goes on with that of its checkpoint, %s, got %s. Start anew to change it."
            logger.warning(told, name, restored, wanted[name])
    if trainer.lr_scheduler is not None and state["lr_scheduler"] is not None:
        load_schedule_state(trainer.lr_scheduler, state["lr_scheduler"])
    if trainer.scaler is not None and state["scaler"] is not None:
        trainer.scaler.load_state_dict(dict(state["scaler"]))
    loop.meter.load_state_dict(state["losses"])
    loop.stepper.parts = int(state["parts"])
    loop.plugin_states_of_absentees = {}
    for name, plugin_state in state["plugins"].items():
        member = trainer.bus.members.get(name)
        if member is not None and hasattr(member.plugin, "load_state_dict"):
            try:
                member.plugin.load_state_dict(plugin_state)
            except Exception as error:
                error.add_note(f"raised in load_state_dict of plugin {name!r}")
                raise
        else:
            loop.plugin_states_of_absentees[name] = plugin_state


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Gives what a checkpoint brings back although a setting says it too, of the first group of parameters."""
    group = optimizer.param_groups[0]
    return {"learning_rate": group.get("initial_lr", group["lr"]), "weight_decay": group.get("weight_decay")}


def load_checkpoint(trainer: Trainer, source: str | bool) -> None:
    """Resumes from `source` through the plugin that reads checkpoints; where nothing was saved yet the run begins anew.

    Raises:
        CheckpointError: no plugin reads checkpoints, or there is none of that name.
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
    folder = trainer.bus.ask("read_checkpoint", trainer=trainer, source=source)
    if folder is None and source is True:
        logger.info("resume_from_checkpoint: nothing was saved in %s yet; the run begins.", trainer.args.output_dir)
    elif folder is None:
        raise CheckpointError(
            f"resume_from_checkpoint: there is no checkpoint, got {source!r}. Pass False to start anew."
        )
    trainer.resumed_from = folder
