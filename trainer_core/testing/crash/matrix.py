"""The crash matrix of a plugin: a small run with it, saves, rotation and a best model, and every way to cut that."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from errno import EIO, ENOSPC, EROFS
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from trainer_core.settings.discovery import installed_names
from trainer_core.testing.crash.disk_model import anything, contents_alone, names_alone, nothing
from trainer_core.testing.crash.rounds import Figures, Rounds
from trainer_core.testing.crash.server import Server
from trainer_core.testing.crash.supervisor import Plan
from trainer_core.testing.crash.witness import Witness, witnessed
from trainer_core.testing.subject import ConformanceError, Subject, subject_of
from trainer_core.testing.tiny import only, tiny_trainer

NEEDED: Final = ("checkpointing", "logging")
"""Plugins that run beside the one under test, where they are installed; without the first nothing can be resumed."""
SETTINGS: Final[Mapping[str, Any]] = {
    "max_steps": 4,
    "save_steps": 2,
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "load_best_model_at_end": True,
    "resume_from_checkpoint": True,
    "learning_rate": 0.05,
}
FAULTS: Final = (
    Plan("fail", errno=ENOSPC),
    Plan("fail", errno=ENOSPC, lasts=True),
    Plan("fail", errno=EIO),
    Plan("fail", errno=EROFS, lasts=True),
    Plan("shorten"),
)
"""A disk that is full for a moment or for good, broken for a moment, read-only, or takes less than it is given."""
SURVIVALS: Final = (nothing, names_alone, contents_alone)
"""What a power cut leaves of the calls that were not flushed, at its worst."""

Point = Callable[[], list[str]]
"""Cuts a run at one place and gives what is wrong."""


def kills(rounds: Rounds) -> list[Point]:
    """Gives a kill before each call, and one within each write."""
    return [_bound(rounds.killed, plan) for plan in rounds.points()]


def faults(rounds: Rounds) -> list[Point]:
    """Gives each fault of a disk at each call."""
    plans = [
        fault.at_call(number)
        for number, call in rounds.numbered()
        for fault in FAULTS
        if fault.action == "fail" or call.can_split
    ]
    return [_bound(rounds.disturbed, plan) for plan in plans]


def power_cuts(rounds: Rounds, subsets: int = 1) -> list[Point]:
    """Gives a power cut before each call: the worst ones, and `subsets` that keep a part by chance."""
    return [
        _bound(rounds.power_cut, at, survival)
        for at in range(1, len(rounds.account.calls) + 1)
        for survival in (*SURVIVALS, *(anything(at * 1000 + number) for number in range(subsets)))
    ]


KINDS: Final[Mapping[str, Callable[[Rounds], list[Point]]]] = {
    "kills": kills,
    "faults": faults,
    "power cuts": power_cuts,
}
"""Kind -> the places where a run is cut so."""


def crash_matrix(
    plugin_type: type[Any],
    *,
    settings: Mapping[str, object] | None = None,
    flat: Mapping[str, object] | None = None,
    kinds: Collection[str] = tuple(KINDS),
    sample: int | None = None,
    seed: int = 0,
) -> Figures:
    """Cuts a small run of a plugin at every place, starts it again, and compares what comes of it to the bit.

    The plugin runs as an installed one would, with checkpointing and the log beside it. Compared are weights,
    optimizer, schedule, history, counters, the states of all plugins, and each file of each checkpoint.

    Args:
        plugin_type: its class, which a fresh process can import: not one within a function.
        settings: fields of its section; None for the defaults, or for what `flat` says.
        flat: flat names with values, its own and the core's, that its run needs.
        kinds: names in `KINDS`; all of them by default.
        sample: so many places of each kind, by chance; None for every one. Places number some hundreds of each kind.
        seed: of that chance.

    Returns:
        How much was done.

    Raises:
        ConformanceError: the run did not survive; it says each place and what was wrong there.
        RuntimeError: the run fails when nobody cuts it, or the calls of a process cannot be watched here.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConformanceError([f"crash_matrix.kinds: is no kind, got {kind!r}. Use {', '.join(KINDS)}."])
    options = {"plugin": _place_of(plugin_type), "settings": settings, "flat": flat}
    figures, problems = Figures(), []
    with TemporaryDirectory() as folder, Server(f"{__name__}:prepared", options) as server:
        if server.watches != "seccomp" and "power cuts" in kinds:
            what = f"calls of a process are not watched here, {server.why_not or 'as it was asked for'}"
            raise RuntimeError(f"crash_matrix: {what}. Leave 'power cuts' out of `kinds`.")
        rounds = Rounds(server, plugin_type.__name__, Path(folder), figures, target=f"{__name__}:run")
        problems += rounds.resumed_when_finished()
        for kind in kinds:
            points = KINDS[kind](rounds)
            chance = random.Random(f"{seed} {kind}")
            for point in points if sample is None else chance.sample(points, min(sample, len(points))):
                problems += point()
    if problems:
        raise ConformanceError(problems)
    return figures


def _bound(cut: Callable[..., list[str]], *arguments: Any) -> Point:
    return lambda: cut(*arguments)


def _place_of(kind: type[Any]) -> tuple[str, str, str]:
    """Gives module, file and name of a class, by which another process finds it."""
    if "<locals>" in kind.__qualname__:
        what = f"is made within a function, got {kind.__qualname__}"
        raise ConformanceError([f"crash_matrix: {kind.__name__} {what}. Define it in a module, at its top level."])
    return kind.__module__, inspect.getsourcefile(kind) or "", kind.__qualname__


def _class_at(module: str, file: str, name: str) -> type[Any]:
    try:
        home = importlib.import_module("" if module == "__main__" else module)
    except (ImportError, ValueError):  # a test's module, which no path leads to
        spec = importlib.util.spec_from_file_location("module_under_test", file)
        if spec is None or spec.loader is None:
            raise
        home = sys.modules["module_under_test"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(home)
    kind: Any = home
    for part in name.split("."):
        kind = getattr(kind, part)
    return kind  # type: ignore[no-any-return] # what the name of a class led to


_PREPARED: Final[list[Subject]] = []
"""The plugin under test, in the fork server and its children."""


@contextmanager
def prepared(
    plugin: tuple[str, str, str], settings: Mapping[str, object] | None, flat: Mapping[str, object] | None
) -> Iterator[None]:
    """Installs the plugin in this process, the fork server, and trains once, so that everything is imported."""
    with ExitStack() as stack:
        subject = stack.enter_context(subject_of(_class_at(*plugin), settings, flat, {}))
        stack.enter_context(only(subject.name, *(installed_names() & set(NEEDED))))
        _PREPARED.append(subject)
        run(subject.folder, lambda what: None)
        yield


def run(folder: Path, announce: Callable[[str], None]) -> dict[str, Any]:
    """Trains with the plugin in `folder`, resuming what is there, and gives what it did and what must be equal."""
    random.seed(7)
    torch.manual_seed(7)
    witness = Witness(announce)
    return witnessed(tiny_trainer(folder, [witness], options={**SETTINGS, **_PREPARED[-1].options}), witness)
