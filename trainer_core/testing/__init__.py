"""The promises of a plugin, checked: what every plugin's tests run, ours and yours.

    from trainer_core.testing import check_plugin

    def test_it_keeps_its_promises():
        check_plugin(Patience, settings={"evaluations": 2})

or, with one test a promise:

    class TestPatience(PluginConformance):
        plugin_type = Patience

The plugin runs as an installed one would, alone: it gets an entry point for the time of the check when it has none, and
all others are blocked. What is promised stands in `PROMISES`. `tiny_model`, `tiny_dataset` and `run` serve tests of
your own. `trainer_core.testing.crash` kills its run at every system call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from trainer_core.testing.promises import PROMISES
from trainer_core.testing.subject import ConformanceError, in_words, subject_of
from trainer_core.testing.tiny import TinyModel, only, run, tiny_dataset, tiny_model

__all__ = [
    "PROMISES",
    "ConformanceError",
    "PluginConformance",
    "TinyModel",
    "check_plugin",
    "only",
    "run",
    "tiny_dataset",
    "tiny_model",
]


def check_plugin(
    plugin_type: type[Any],
    *,
    settings: Mapping[str, object] | None = None,
    flat: Mapping[str, object] | None = None,
    promises: Collection[str] = tuple(PROMISES),
    old_states: Mapping[int, Any] | None = None,
) -> None:
    """Checks what a plugin promises.

    Args:
        plugin_type: its class.
        settings: fields of its section; None for the defaults, or for what `flat` says.
        flat: flat names with values, its own and the core's, that its runs need.
        promises: names in `PROMISES`; all of them by default.
        old_states: `state_version` of an older release -> a state that it saved.

    Raises:
        ConformanceError: promises are broken; it says all of them at once.
    """
    with subject_of(plugin_type, settings, flat, old_states or {}) as subject:
        run()  # what a first run loads and leaves in a process is the core's
        problems: list[str] = []
        for promise in promises:
            try:
                problems += PROMISES[promise](subject)
            except Exception as error:
                problems.append(f"cannot be checked for {promise!r}, got {in_words(error)}. Repair that first.")
        if problems:
            raise ConformanceError([f"plugin {subject.name!r}: {problem}" for problem in dict.fromkeys(problems)])


class PluginConformance:
    """Tests of a plugin, one a promise; subclass it as `Test…` and set `plugin_type`.

    Attributes:
        plugin_type: the plugin's class.
        settings, flat, old_states: as in `check_plugin`.
    """

    plugin_type: ClassVar[type[Any]]
    settings: ClassVar[Mapping[str, object] | None] = None
    flat: ClassVar[Mapping[str, object] | None] = None
    old_states: ClassVar[Mapping[int, Any] | None] = None

    def test_settings_go_into_json_and_back(self) -> None:
        """Its settings are JSON, have a schema, and read back under their flat names."""
        self._check("settings")

    def test_every_hook_is_one_that_the_bus_knows(self) -> None:
        """No hook is misspelt, and there is one."""
        self._check("hooks")

    def test_a_run_with_only_this_plugin_finishes(self) -> None:
        """A run that fails, fails as it would without it."""
        self._check("run")

    def test_state_goes_into_a_checkpoint_and_back(self) -> None:
        """A fresh instance that loads its state has the same, and takes those of older releases that it migrates."""
        self._check("state")

    def test_nothing_is_left_on_the_model(self) -> None:
        """However a run ends."""
        self._check("model")

    def test_nothing_is_left_in_the_process(self) -> None:
        """However a run ends."""
        self._check("process")

    def test_its_time_is_accounted_for(self) -> None:
        """It works in its hooks and nowhere else."""
        self._check("time")

    def test_it_can_be_blocked_and_turned_off(self) -> None:
        """By name."""
        self._check("blocking")

    def _check(self, promise: str) -> None:
        check_plugin(
            self.plugin_type,
            settings=self.settings,
            flat=self.flat,
            promises=[promise],
            old_states=self.old_states,
        )
