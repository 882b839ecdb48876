"""A plugin under test, installed and alone, and what comes of its runs."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final
from unittest.mock import patch

from torch import nn

from trainer_core.errors import DataError, TrainerCoreError
from trainer_core.hookspecs import hookimpl
from trainer_core.settings.arguments import TrainingArguments
from trainer_core.settings.discovery import GROUP
from trainer_core.settings.section import Section
from trainer_core.testing.tiny import only, tiny_trainer
from trainer_core.trainer import Trainer


class ConformanceError(TrainerCoreError, AssertionError):
    """Promises that a plugin breaks; `problems` holds one sentence for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass
class Subject:
    """A plugin that is being checked, installed and alone.

    Attributes:
        name: of its entry point.
        plugin_type: its class.
        options: settings that turn it on.
        folder: its runs write into folders in it.
        numbers: of these.
        old_states: version -> a state that an older release of it saved.
    """

    name: str
    plugin_type: type[Any]
    options: Mapping[str, object]
    folder: Path
    numbers: Iterator[int] = field(default_factory=count)
    old_states: Mapping[int, Any] = field(default_factory=dict)

    @property
    def settings_type(self) -> type[Section]:
        """The class of its settings."""
        kind: type[Section] = self.plugin_type.settings_type
        return kind

    def args(self, **more: object) -> TrainingArguments:
        """Gives arguments with the plugin on."""
        return TrainingArguments(**{"output_dir": self.folder, **self.options, **more})  # type: ignore[arg-type] # checked there

    def new(self) -> Any:
        """Gives a fresh instance."""
        return self.plugin_type(self.args().section(self.name))

    def attempt(self, outcome: str, model: nn.Module | None = None) -> Attempt:
        """Gives what came of a run that goes the way of `outcome`, a key of `OUTCOMES`."""
        attempt = Attempt(self.name, outcome)
        folder = self.folder / f"run-{next(self.numbers)}"
        data: list[object] | None = [] if outcome == "fails before its first update" else None
        probe = _Probe(attempt, self.name, fails=outcome == "fails in an update")
        try:
            attempt.trainer = tiny_trainer(folder, [probe], model, data, self.options)
            attempt.trainer.train()
        except Exception as error:
            attempt.error = error
        return attempt


@dataclass
class Attempt:
    """A run of a plugin under test, that was to go the way of `outcome`."""

    plugin: str
    outcome: str
    trainer: Trainer | None = None
    error: Exception | None = None
    state: Any = None

    def problems(self) -> Iterator[str]:
        """Says where the run went another way than it was meant to."""
        wanted = OUTCOMES[self.outcome]
        if self.error is not None and not isinstance(self.error, wanted or ()):
            yield f"breaks a run that {self.outcome}, got {in_words(self.error)}. Make its hooks work there."
            return
        for note in getattr(self.error, "__notes__", ()):
            if f"plugin {self.plugin!r}" in note:
                yield f"fails at the end of a run that {self.outcome}: {note}. Make its hooks work there."


class _PlannedError(Exception):
    """Ends a run on purpose."""


OUTCOMES: Final[Mapping[str, type[Exception] | None]] = {
    "finishes": None,
    "fails in an update": _PlannedError,
    "fails before its first update": DataError,
}
"""How a run goes -> the error that ends it."""


class _Probe:
    """Looks at the plugin when training is over, or makes the run fail in its fifth update."""

    name = "probe_of_the_check"

    def __init__(self, attempt: Attempt, plugin: str, *, fails: bool) -> None:
        self.attempt = attempt
        self.plugin = plugin
        self.fails = fails

    def on_step_end(self, trainer: Trainer) -> None:
        if self.fails and trainer.state.global_step == 5:
            raise _PlannedError("a failure that the check made")

    @hookimpl(trylast=True)
    def on_train_end(self, trainer: Trainer) -> None:
        member = trainer.bus.members.get(self.plugin)
        if member is not None and hasattr(member.plugin, "state_dict"):
            self.attempt.state = member.plugin.state_dict()


@contextmanager
def subject_of(
    plugin_type: type[Any],
    settings: Mapping[str, object] | None,
    flat: Mapping[str, object] | None,
    old_states: Mapping[int, Any],
) -> Iterator[Subject]:
    """Gives the plugin under test, installed and alone for the time of the context."""
    with TemporaryDirectory() as folder, _installed(plugin_type, Path(folder)) as name, only(name):
        options = dict(flat or {})
        kind = getattr(plugin_type, "settings_type", None)
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            raise ConformanceError(
                [f"plugin {name!r}: needs a class attribute settings_type, a Section, got {kind!r}. Give it one."]
            )
        if settings is not None or not set(options) & {*kind.flat, *kind.aliases, kind.switch}:
            options[name] = dict(settings) if settings else True
        yield Subject(name, plugin_type, options, Path(folder) / "run", old_states=old_states)


@contextmanager
def _installed(plugin_type: type[Any], folder: Path) -> Iterator[str]:
    """Gives the name under which the class is installed; installs it for the time of the context where it is not."""
    for point in entry_points(group=GROUP):
        if point.attr == plugin_type.__qualname__ and point.load() is plugin_type:
            yield point.name
            return
    name = str(getattr(plugin_type, "name", "") or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plugin_type.__name__).lower())
    module = ModuleType("trainer_core_plugin_under_test")
    vars(module)["plugin_type"] = plugin_type
    site = folder / "site"
    info = site / "plugin_under_test-0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: plugin-under-test\nVersion: 0\n")
    info.joinpath("entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module.__name__}:plugin_type\n")
    with patch.dict(sys.modules, {module.__name__: module}), patch.object(sys, "path", [str(site), *sys.path]):
        yield name


def in_words(error: BaseException) -> str:
    """Gives an error with the line that raised it and its notes."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}{notes}"
