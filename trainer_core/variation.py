"""A trainer with other settings for a while: what a search runs each of its trials in.

    with with_settings(trainer, trainer.args.replace(learning_rate=0.01, output_dir="runs/bolder")):
        trainer.train()

It is the same object, so that what refers to it (a subclass's own attributes, a callback, a closure) sees the run that
is on; everything that a constructor makes of the settings is made anew. Afterwards each of its attributes is what it
was.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainer_core.assembly import register_given, register_installed
from trainer_core.bus import Bus
from trainer_core.callbacks import TrainerControl
from trainer_core.errors import PluginError
from trainer_core.memory import MemoryMeter
from trainer_core.settings.discovery import installed_plugins
from trainer_core.state import TrainerState

if TYPE_CHECKING:
    from trainer_core.ordering import Member
    from trainer_core.settings.arguments import TrainingArguments
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.variation")


@contextmanager
def with_settings(trainer: Trainer, args: TrainingArguments, plugins: Iterable[object] = ()) -> Iterator[Trainer]:
    """Gives `trainer` other settings for the time of the context, as if it had been constructed with them.

    Installed plugins are made anew from the sections of `args`. Plugins and callbacks that the user passed are on the
    new bus too, the same objects; those with a `state_dict` have the state that they had, afterwards. A trainer with a
    `model_init` gets a new model when it trains, any other goes on with the one that it has.

    Args:
        trainer: not in training.
        args: instead of its own.
        plugins: further plugins for this time, named by their `name` or class.

    Raises:
        PluginError: the trainer trains.
    """
    if trainer.is_in_train:
        raise PluginError("with_settings: a run is on, whose settings cannot change. Ask after train().")
    before = dict(vars(trainer))
    users = _users_members(trainer)
    states = dict(_states(users))
    try:
        _renew(trainer, args, users, plugins)
        yield trainer
    finally:
        vars(trainer).clear()
        vars(trainer).update(before)
        for plugin, state in states.values():
            plugin.load_state_dict(state)


def _renew(trainer: Trainer, args: TrainingArguments, users: Iterable[Member], plugins: Iterable[object]) -> None:
    """Sets what the constructor makes of the settings, and forgets what was made at first use."""
    optimizer, lr_scheduler = trainer.users_optimizers
    known = _installed_members(trainer)
    left_out = {name for name in trainer.args.sections if name not in known}
    for name in [name for name in vars(trainer) if isinstance(getattr(type(trainer), name, None), cached_property)]:
        del vars(trainer)[name]
    trainer.args, trainer.bus, trainer.memory = args, Bus(), MemoryMeter(args)
    trainer.state, trainer.control = TrainerState(), TrainerControl()
    trainer.optimizer, trainer.lr_scheduler = optimizer, lr_scheduler  # type: ignore[assignment] # None is made anew
    trainer.made_for_run, trainer.running, trainer.last_plan, trainer.outcome = (None, None), None, None, ""
    register_installed(trainer, left_out)
    for member in users:
        trainer.bus.register(member.plugin, member.name)
    register_given(trainer, plugins)
    trainer.bus.compile()
    trainer.bus.tell("on_init_end", trainer=trainer)
    trainer.memory.end_init()


def _installed_members(trainer: Trainer) -> set[str]:
    """Gives the names of plugins on the bus that the settings put there."""
    kinds = installed_plugins(trainer.args.block_plugins)
    members, sections = trainer.bus.members, trainer.args.sections
    return {name for name in sections if name in members and type(members[name].plugin) is kinds[name]}


def _users_members(trainer: Trainer) -> list[Member]:
    """Gives what the user put on the bus, in the order in which it came there."""
    installed = _installed_members(trainer)
    return [member for name, member in trainer.bus.members.items() if name not in installed]


def _states(members: Iterable[Member]) -> Iterator[tuple[str, tuple[Any, Mapping[str, Any]]]]:
    """Gives plugins that can be put back, each with a copy of its state."""
    for member in members:
        plugin: Any = member.plugin
        if not (hasattr(plugin, "state_dict") and hasattr(plugin, "load_state_dict")):
            continue
        try:
            yield member.name, (plugin, copy.deepcopy(plugin.state_dict()))
        except Exception as error:  # a plugin that has a state only while it trains
            told = "plugin %r: has no state outside a run (%r), so it keeps that of the run."
            logger.warning(told, member.name, error)
