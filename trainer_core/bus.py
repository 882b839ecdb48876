"""The bus: who listens to what, in which order, at what cost.

pluggy registers plugins and checks their hooks against `hookspecs`. What it holds is compiled into one flat tuple
of implementations per hook, in the order that `before`, `after` and the order of registration give; a call walks
that tuple. Every implementation is called from one of two places here (`_call` and the compiled step hooks), which
keep its time, apply its failure policy, and put plugin and hook into the traceback.

Step hooks are sampled: one update in `SAMPLE_EVERY` runs through a timed twin of the tuple, and its seconds count
`SAMPLE_EVERY` times, so that accounting costs less than what it counts.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pluggy
from pluggy._manager import PluginValidationError

from trainer_core import hookspecs
from trainer_core.errors import PluginError, did_you_mean
from trainer_core.hookspecs import HOOKS
from trainer_core.ordering import Member, ordered, wished

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.bus")

SAMPLE_EVERY: Final = 16
"""One update in so many is timed; a power of two."""

MAX_FAILURES: Final = 3
"""A best-effort plugin is switched off after so many exceptions."""

StepHook = Callable[["Trainer"], None]


class StepHooks(NamedTuple):
    """The compiled hooks of an update; None where nobody listens."""

    on_step_begin: StepHook | None
    on_substep_end: StepHook | None
    on_pre_optimizer_step: StepHook | None
    on_optimizer_step: StepHook | None
    on_step_end: StepHook | None


@dataclass(frozen=True, slots=True)
class Implementation:
    """One hook of one plugin, ready to be called."""

    member: Member
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]


class _Manager(pluggy.PluginManager):
    """pluggy's manager; methods named like a hook, or `on_…`, count as hooks without being marked."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        if name.startswith("_"):
            return None
        marked = super().parse_hookimpl_opts(plugin, name)
        if marked is not None:
            return marked
        is_hook = name.startswith("on_") or name in HOOKS
        return {} if is_hook and inspect.isroutine(getattr(plugin, name, None)) else None


@dataclass(slots=True)
class Bus:
    """Plugins of one trainer.

    Attributes:
        members: registered plugins by name, in call order once `compile` ran.
        is_stale: plugins were added or removed since the last `compile`.
        failure: what a plugin raised in a hook that tells of something done; the loop raises it at the boundary.
        is_held: a run is in a phase; what was added or removed waits for its boundary, where the loop compiles.
    """

    members: dict[str, Member] = field(default_factory=dict)
    is_stale: bool = True
    failure: Exception | None = None
    is_held: bool = False
    _manager: _Manager = field(default_factory=lambda: _new_manager())  # noqa: PLW0108 # it is defined below
    _implementations: dict[str, tuple[Implementation, ...]] = field(default_factory=dict)
    _step_hooks: tuple[StepHooks, StepHooks] | None = None

    def register(self, plugin: object, name: str) -> None:
        """Adds `plugin` under `name`; it is called from the next `compile` on.

        Raises:
            PluginError: the name is taken, a hook has an argument that its specification lacks, or a hook is misspelt.
        """
        if name in self.members:
            raise PluginError(f"plugin {name!r}: is registered already. Give one of the two another name.")
        if twin := next((other for other in self.members.values() if other.plugin == plugin), None):
            raise PluginError(
                f"plugin {name!r}: equals {twin.name!r}, which is registered already. "
                f"Register an object once, and give a dataclass that is a plugin eq=False."
            )
        before, after = wished(plugin, "before", name), wished(plugin, "after", name)
        try:
            self._manager.register(plugin, name)
            self._check(plugin, name)
        except PluginValidationError as error:
            self._forget(plugin)
            raise PluginError(f"plugin {name!r}: {_one_line(error)}") from None
        except (PluginError, ValueError) as error:
            self._forget(plugin)
            raise PluginError(str(error)) from None
        self.members[name] = Member(
            name,
            plugin,
            critical=bool(getattr(plugin, "critical", True)),
            before=before,
            after=after,
        )
        self.is_stale = True

    def unregister(self, name: str) -> object:
        """Removes the plugin `name` and gives it back; it is no longer called from the next `compile` on."""
        if name not in self.members:
            raise PluginError(f"plugin {name!r}: is not registered.{did_you_mean(name, self.members)}")
        member = self.members.pop(name)
        self._manager.unregister(member.plugin)
        self.is_stale = True
        return member.plugin

    def begin(self) -> None:
        """Starts the account of a run: no seconds, no failures; what the last run switched off is on again."""
        for member in self.members.values():
            member.seconds, member.failures, member.is_off = 0.0, 0, False
        self.failure = None
        self.is_stale = True

    def compile(self) -> None:
        """Orders the plugins and builds the tuple of every hook.

        Raises:
            PluginError: `before` and `after` form a circle, or two plugins answer one question.
        """
        self.members = {member.name: member for member in ordered(self.members.values())}
        self._implementations = {hook: self._implementations_of(hook) for hook in HOOKS}
        self._step_hooks = (self._compile_step_hooks(timed=False), self._compile_step_hooks(timed=True))
        self.is_stale = False

    def tell(self, hook: str, /, **context: Any) -> None:
        """Calls every implementation of the told hook `hook`."""
        for implementation in self._listeners(hook):
            self._call(implementation, context)

    def tell_all(self, hook: str, /, **context: Any) -> None:
        """Calls every implementation of `hook`, though some fail; raises the first error, with notes of the others."""
        failures: list[tuple[Exception, str]] = []
        for implementation in self._listeners(hook):
            try:
                self._call(implementation, context)
            except Exception as error:
                failures.append((error, implementation.member.name))
        if not failures:
            return
        first, _ = failures[0]
        for failure, name in failures[1:]:
            first.add_note(f"and raised in plugin {name!r}, hook {hook}: {failure!r}")
        raise first

    def ask(self, hook: str, /, **context: Any) -> Any:
        """Gives the first answer to the asked hook `hook` that is not None."""
        for implementation in self._listeners(hook):
            answer = self._call(implementation, context)
            if answer is not None:
                return answer
        return None

    def listens(self, hook: str) -> bool:
        """Tells whether any plugin implements `hook`."""
        return bool(self._listeners(hook))

    def step_hooks(self) -> tuple[StepHooks, StepHooks]:
        """Gives the compiled hooks of an update, and their timed twin."""
        if self._step_hooks is None or self.is_stale:
            self.compile()
        assert self._step_hooks is not None
        return self._step_hooks

    def hooks_of(self, name: str) -> list[str]:
        """Gives the hooks that plugin `name` implements."""
        return sorted(caller.name for caller in self._manager.get_hookcallers(self.members[name].plugin) or [])

    def _listeners(self, hook: str) -> tuple[Implementation, ...]:
        if self.is_stale and not self.is_held:
            self.compile()
        return self._implementations[hook]

    def _implementations_of(self, hook: str) -> tuple[Implementation, ...]:
        places = {id(member.plugin): place for place, member in enumerate(self.members.values())}
        members = {id(member.plugin): member for member in self.members.values()}
        found = [
            impl for impl in getattr(self._manager.hook, hook).get_hookimpls() if not members[id(impl.plugin)].is_off
        ]
        found.sort(key=lambda impl: (not impl.tryfirst, impl.trylast, places[id(impl.plugin)]))
        compiled = tuple(
            Implementation(members[id(impl.plugin)], hook, impl.function, tuple(impl.argnames)) for impl in found
        )
        if HOOKS[hook] and len(compiled) > 1:
            _refuse_doubled(hook, [implementation.member for implementation in compiled])
        return compiled

    def _call(self, implementation: Implementation, context: Mapping[str, Any]) -> Any:
        if implementation.member.is_off:
            return None
        started = perf_counter()
        try:
            return implementation.function(*(context[name] for name in implementation.arguments))
        except Exception as error:
            self._failed(implementation, error)
            return None
        finally:
            implementation.member.seconds += perf_counter() - started

    def _compile_step_hooks(self, *, timed: bool) -> StepHooks:
        build = self._timed if timed else self._untimed
        return StepHooks(*(build(self._implementations[hook]) for hook in hookspecs.STEP_HOOKS))

    def _untimed(self, implementations: tuple[Implementation, ...]) -> StepHook | None:
        if not implementations:
            return None
        calls = tuple(_taking_trainer(implementation) for implementation in implementations)

        def fire(trainer: Trainer) -> None:
            for call in calls:
                try:
                    call(trainer)
                except Exception as error:
                    self._failed(implementations[calls.index(call)], error)

        return fire

    def _timed(self, implementations: tuple[Implementation, ...]) -> StepHook | None:
        if not implementations:
            return None
        calls = tuple((_taking_trainer(implementation), implementation) for implementation in implementations)

        def fire(trainer: Trainer) -> None:
            started = perf_counter()
            for call, implementation in calls:
                try:
                    call(trainer)
                except Exception as error:
                    self._failed(implementation, error)
                now = perf_counter()
                implementation.member.seconds += SAMPLE_EVERY * (now - started)
                started = now

        return fire

    def _failed(self, implementation: Implementation, error: Exception) -> None:
        """Applies the failure policy: raises `error` again with a note, or counts it and goes on.

        What a critical plugin raises in a run when it is told of something that is done is kept until the boundary:
        the others are told, too, and the update is whole when the run ends.
        """
        member = implementation.member
        where = f"plugin {member.name!r}, hook {implementation.hook}"
        if member.critical:
            error.add_note(f"raised in {where}")
            if not self.is_held or implementation.hook not in hookspecs.TOLD_WHEN_DONE:
                raise error
            self._keep(error)
            return
        if member.is_off:
            return
        member.failures += 1
        logger.warning("%s: failed (%d of %d), got %r.", where, member.failures, MAX_FAILURES, error)
        if member.failures >= MAX_FAILURES:
            member.is_off = True
            self.is_stale = True
            logger.warning("plugin %r: is switched off after %d failures; the run goes on.", member.name, MAX_FAILURES)

    def _keep(self, error: Exception) -> None:
        if self.failure is None:
            self.failure, self.is_stale = error, True
        elif repr(error) != repr(self.failure):
            self.failure.add_note(f"and then {error!r}, {error.__notes__[-1]}")

    def _check(self, plugin: object, name: str) -> None:
        """Raises PluginError for hooks that no specification knows, pluggy's wrappers, and what pluggy passes over."""
        for hook in HOOKS:
            value = getattr(plugin, hook, None)
            if callable(value) and not inspect.isroutine(value):
                raise PluginError(f"plugin {name!r}: {hook} is no method, got {type(value).__name__}. Write a method.")
        for caller in self._manager.get_hookcallers(plugin) or []:
            implementation = next(impl for impl in caller.get_hookimpls() if impl.plugin is plugin)
            if implementation.hookwrapper or implementation.wrapper:
                raise PluginError(
                    f"plugin {name!r}: {caller.name} is a hook wrapper. Write a plain hook, ordered by before/after."
                )
            if caller.spec is None:
                hint = did_you_mean(caller.name, HOOKS) or f" Hooks are {', '.join(sorted(HOOKS))}."
                raise PluginError(f"plugin {name!r}: there is no hook {caller.name!r}.{hint}")

    def _forget(self, plugin: object) -> None:
        """Takes a plugin whose registration failed off pluggy's books."""
        if self._manager.is_registered(plugin):
            self._manager.unregister(plugin)


def _new_manager() -> _Manager:
    manager = _Manager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _taking_trainer(implementation: Implementation) -> StepHook:
    """Gives a callable that takes the trainer; the function itself where that is its one argument."""
    function = implementation.function
    if implementation.arguments == ("trainer",):
        return function
    return lambda trainer: function()


def _refuse_doubled(hook: str, members: list[Member]) -> None:
    for first, second in pairwise(members):
        if second.name not in first.before and first.name not in second.after:
            raise PluginError(
                f"plugins {first.name!r} and {second.name!r}: both answer {hook}. "
                f"Block one of them, or let one name the other in `before` or `after`."
            )


def _one_line(error: PluginValidationError) -> str:
    return " ".join(str(error.args[1] if len(error.args) > 1 else error).split())
