"""What a plugin promises, and how each promise is checked: a generator of sentences on how it is broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

import torch

from trainer_core.bus import Bus
from trainer_core.errors import PluginError, SettingsError
from trainer_core.hookspecs import HOOKS
from trainer_core.plugin_states import state_version
from trainer_core.settings.arguments import TrainingArguments
from trainer_core.settings.section import Section
from trainer_core.testing.leftovers import differences, model_marks, open_files, process_marks
from trainer_core.testing.subject import OUTCOMES, Subject, in_words
from trainer_core.testing.tiny import tiny_model, tiny_trainer
from trainer_core.trainer import Trainer


def _settings(subject: Subject) -> Iterator[str]:
    """Its settings go into JSON and back, have a schema, and read back under their flat names."""
    args, kind = subject.args(), subject.settings_type
    section = args.section(subject.name)
    if section is None:
        yield f"is off with {subject.options!r}. Pass settings that turn it on."
        return
    for name, entry in kind.model_fields.items():
        if not entry.description:
            yield f"its setting {name!r} has no line under it. Write one: its unit, and what None means."
    try:
        text = json.dumps(args.to_dict(), allow_nan=False)
        json.dumps(TrainingArguments.json_schema(), allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"its settings or their schema are no JSON ({error}). Use types that JSON has."
        return
    try:
        again = TrainingArguments(**json.loads(text)).section(subject.name)
    except SettingsError as error:
        mistakes = " ".join(error.problems)
        yield f"its settings do not come back from JSON ({mistakes}). Let validators take what they give."
        again = section
    if again != section:
        yield f"its settings come back from JSON as {again!r}, got {section!r}. Let validators keep what they take."
    yield from _flat_names(subject, section)


def _flat_names(subject: Subject, section: Section) -> Iterator[str]:
    kind = subject.settings_type
    asked = {**kind.flat, **{alias: kind.flat.get(name, "") for alias, name in kind.aliases.items()}}
    for flat, name in asked.items():
        if not name or (value := getattr(section, name)) is None:
            continue
        try:
            args = TrainingArguments(**{**subject.options, subject.name: True, flat: value})
        except SettingsError as error:
            yield f"its flat name {flat!r} does not take {value!r} ({' '.join(error.problems)}). Correct `flat`."
            continue
        if getattr(args, flat) != value:
            yield f"its flat name {flat!r} reads back {getattr(args, flat)!r}, got {value!r}. Correct `flat`."


def _hooks(subject: Subject) -> Iterator[str]:
    """Each of its hooks is one that the bus knows."""
    plugin, bus = subject.new(), Bus()
    try:
        bus.register(plugin, subject.name)
    except PluginError as error:
        yield str(error).removeprefix(f"plugin {subject.name!r}: ")
        return
    if not bus.hooks_of(subject.name):
        yield "has no hook. Name a method like one of those in trainer_core.hookspecs."
    for name in dir(subject.plugin_type):
        close = get_close_matches(name, HOOKS, n=1, cutoff=0.85)
        if close and name not in HOOKS and not name.startswith("_"):
            yield f"its method {name!r} is no hook. Did you mean {close[0]!r}? Else give it a leading underscore."


def _run(subject: Subject) -> Iterator[str]:
    """A run with only this plugin finishes; one that fails, fails as it would without it."""
    for outcome in OUTCOMES:
        attempt = subject.attempt(outcome)
        yield from attempt.problems()
        member = attempt.trainer.bus.members.get(subject.name) if attempt.trainer is not None else None
        if member is not None and member.failures:
            yield f"its hooks failed {member.failures} times in a run that {outcome}. See the log of trainer_core.bus."


def _state(subject: Subject) -> Iterator[str]:
    """Its state is JSON and tensors, and a fresh instance that loads it has the same."""
    saves, loads = (hasattr(subject.plugin_type, name) for name in ("state_dict", "load_state_dict"))
    if saves != loads:
        there, missing = ("state_dict", "load_state_dict") if saves else ("load_state_dict", "state_dict")
        yield f"has {there} and no {missing}, so its state is not saved. Write both."
    if not (saves and loads):
        return
    yield from _old_states(subject)
    state = subject.attempt("finishes").state
    if problem := _no_json(state, "state"):
        yield f"its {problem}. Keep to mappings with text as keys, lists, text, numbers, None and tensors."
        return
    fresh = subject.new()
    try:
        fresh.load_state_dict(_copied(state))
        again = fresh.state_dict()
    except Exception as error:
        yield f"a fresh instance cannot load its state, got {in_words(error)}. It is loaded before on_train_begin."
        return
    if not _equal(state, again):
        yield f"its state changes when a fresh instance loads it, from {state!r} to {again!r}. Load all that is saved."


def _old_states(subject: Subject) -> Iterator[str]:
    """Its states of older versions are migrated, where it says that it migrates them."""
    try:
        version = state_version(subject.name, subject.plugin_type)
    except PluginError as error:
        yield str(error).removeprefix(f"plugin {subject.name!r}: ")
        return
    migrates = hasattr(subject.plugin_type, "migrate_state_dict")
    if migrates and version == 1:
        yield "has migrate_state_dict and state_version 1, so it is never called. Raise state_version."
    if migrates and not subject.old_states and version > 1:
        yield f"migrates states, and the check got none. Pass old_states={{{version - 1}: ...}}."
    for old, state in subject.old_states.items():
        fresh = subject.new()
        try:
            fresh.load_state_dict(fresh.migrate_state_dict(_copied(state), old))
            if problem := _no_json(fresh.state_dict(), "state"):
                yield f"has no state to save after one of version {old}: its {problem}."
        except Exception as error:
            yield f"cannot take its state of version {old}, got {in_words(error)}. Repair migrate_state_dict."


def _model(subject: Subject) -> Iterator[str]:
    """Nothing of it is left on the model, however a run ends."""
    for outcome in OUTCOMES:
        model = tiny_model()
        before = model_marks(model)
        subject.attempt(outcome, model)
        for told in differences(before, model_marks(model)):
            yield f"{told} on the model after a run that {outcome}. Undo it in on_teardown."


def _process(subject: Subject) -> Iterator[str]:
    """Nothing of it is left in the process, and no file open, however a run ends."""
    for outcome in OUTCOMES:
        before = process_marks()
        attempt = subject.attempt(outcome)
        told = differences(before, process_marks())
        told += [f"leaves the file {name} open" for name in open_files(subject.folder)]
        for one in told:
            yield f"{one} in the process after a run that {outcome}. Put it back in on_teardown."
        del attempt  # holds the files open until here


def _time(subject: Subject) -> Iterator[str]:
    """Its time is accounted for: it works in its hooks and nowhere else."""
    trainer = subject.attempt("finishes").trainer
    if trainer is None:
        return
    member = trainer.bus.members.get(subject.name)
    if member is None:
        yield "takes itself off the bus, where its time would be kept. Leave it there."
    elif not member.seconds and any(_fires(hook) for hook in trainer.bus.hooks_of(subject.name)):
        yield "its time is not accounted for. Work in the hooks, and leave the bus its accounts."
    for name in vars(trainer).keys() & vars(Trainer).keys():
        if callable(vars(trainer)[name]) and callable(getattr(Trainer, name)):
            yield f"replaces trainer.{name}, so its time there is not accounted for. Work in the hooks."


def _fires(hook: str) -> bool:
    return hook.startswith("on_") and hook not in {"on_save", "on_predict", "on_exception", "on_substep_end"}


def _blocking(subject: Subject) -> Iterator[str]:
    """It can be blocked by name and turned off."""
    own = {subject.name, *subject.settings_type.flat, *subject.settings_type.aliases, subject.settings_type.switch}
    rest = {name: value for name, value in subject.options.items() if name not in own}
    ways: dict[str, dict[str, object]] = {"blocked": {"block_plugins": [subject.name]}, "off": {subject.name: None}}
    for way, option in ways.items():
        before = process_marks()
        trainer = tiny_trainer(subject.folder / way, options={**rest, **option})
        trainer.train()
        if any(isinstance(member.plugin, subject.plugin_type) for member in trainer.bus.members.values()):
            yield f"is on the bus although it is {way}. Let the entry point alone put it there."
        for told in differences(before, process_marks()):
            yield f"{told} in the process although it is {way}. Do nothing when the module is imported."


def _no_json(value: Any, where: str) -> str:
    """Says which part of a state is neither JSON nor a tensor; empty when there is none."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                return f"{where} has the key {key!r}, which is no text"
            if problem := _no_json(inner, f"{where}[{key!r}]"):
                return problem
        return ""
    if isinstance(value, list):
        return next(filter(None, (_no_json(inner, f"{where}[{place}]") for place, inner in enumerate(value))), "")
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where} is {value}, which JSON does not have"
    is_known = value is None or isinstance(value, bool | int | float | str | torch.Tensor)
    return "" if is_known else f"{where} is a {type(value).__name__}, got {value!r}"


def _copied(value: Any) -> Any:
    """Gives a state as a checkpoint brings it back."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value.clone() if isinstance(value, torch.Tensor) else json.loads(json.dumps(value))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        same_length = isinstance(other, list) and len(one) == len(other)
        return same_length and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


PROMISES: Final[Mapping[str, Callable[[Subject], Iterator[str]]]] = {
    "settings": _settings,
    "hooks": _hooks,
    "run": _run,
    "state": _state,
    "model": _model,
    "process": _process,
    "time": _time,
    "blocking": _blocking,
}
