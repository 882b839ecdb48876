"""Each promise of a plugin, broken on purpose; and the helpers that ship with the checks."""

import importlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import types
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import field_validator
from torch import nn
from torch.nn.utils import parametrize

from trainer_core import NonFiniteLossError, Section, Trainer
from trainer_core.testing import (
    PROMISES,
    ConformanceError,
    PluginConformance,
    check_plugin,
    only,
    run,
    tiny_dataset,
    tiny_model,
)
from trainer_core.testing.leftovers import differences, model_marks, open_files, process_marks

ROOT = Path(__file__).parents[1]


class PatienceSettings(Section):
    """Counts evaluations."""

    flat: ClassVar = {"patience_evaluations": "evaluations"}
    aliases: ClassVar = {"patience_checks": "patience_evaluations"}

    evaluations: int = 3
    """How many evaluations are enough."""


class Patience:
    """A plugin that keeps every promise, with a hook and a buffer on the model."""

    settings_type = PatienceSettings

    def __init__(self, settings):
        self.settings = settings
        self.seen = torch.zeros(2)
        self.handle = None

    def on_train_begin(self, trainer):
        self.handle = trainer.model.register_forward_hook(lambda *_: None)
        trainer.model.register_buffer("patience", torch.ones(()))

    def on_evaluate(self):
        self.seen += 1

    def on_teardown(self, trainer):
        if self.handle is not None:
            self.handle.remove()
            del trainer.model.patience
            self.handle = None

    def state_dict(self):
        return {"seen": self.seen.clone(), "words": ["a", None, 1.5]}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class TestPatience(PluginConformance):
    """The class that a plugin's own tests subclass, on a plugin that keeps its promises."""

    plugin_type = Patience
    settings: ClassVar = {"evaluations": 2}


def plugin(settings_type=PatienceSettings, **members):
    """Makes a plugin class of hooks and other members."""
    usual = {"settings_type": settings_type, "__init__": lambda self, settings: None}
    return type("Bad", (), {**usual, "on_epoch_end": lambda self: None, **members})


def broken(kind, *promises, **options):
    """Gives the problems that a check finds."""
    with pytest.raises(ConformanceError) as caught:
        check_plugin(kind, **options, **({"promises": promises} if promises else {}))
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_every_promise_has_a_test_in_the_class():
    tests = [name for name in vars(PluginConformance) if name.startswith("test_")]
    assert len(tests) == len(PROMISES)


def test_one_call_checks_every_promise_with_nested_or_flat_settings():
    check_plugin(Patience)
    check_plugin(Patience, settings={"evaluations": 5})
    check_plugin(Patience, flat={"patience_evaluations": 5, "eval_strategy": "steps", "eval_steps": 4})


def test_all_broken_promises_are_told_at_once_under_the_name_of_the_plugin():
    problems = broken(plugin(on_step_edn=lambda self: None, state_dict=lambda self: {}))
    assert len(problems) > 1
    assert all(problem.startswith("plugin 'bad': ") for problem in problems)


def test_a_class_without_settings_is_told():
    assert broken(plugin(settings_type=None)) == [
        "plugin 'bad': needs a class attribute settings_type, a Section, got None. Give it one."
    ]


# Settings


def test_a_setting_without_a_line_under_it_is_told():
    class Bare(Section):
        speed: int = 1

    assert broken(plugin(Bare), "settings") == [
        "plugin 'bad': its setting 'speed' has no line under it. Write one: its unit, and what None means."
    ]


class Shouting(Section):
    """Turns its text into one that it refuses."""

    flat: ClassVar = {"bad_size": "size"}

    size: str = "small"
    """In small letters."""

    @field_validator("size")
    @classmethod
    def _loud(cls, size):
        if size.isupper():
            raise ValueError("must be in small letters. Do not shout")
        return size.upper()


def test_a_setting_that_is_not_taken_as_it_was_given_is_told_in_both_spellings():
    mistake = "bad.size: must be in small letters, got 'SMALL' (from keyword). Do not shout."
    assert broken(plugin(Shouting), "settings", settings={"size": "small"}) == [
        f"plugin 'bad': its settings do not come back from JSON ({mistake}). Let validators take what they give.",
        f"plugin 'bad': its flat name 'bad_size' does not take 'SMALL' ({mistake.replace('bad.size', 'bad_size')}). "
        "Correct `flat`.",
    ]


def test_a_setting_that_changes_on_the_way_is_told():
    class Growing(Section):
        size: int = 2
        """Units."""

        @field_validator("size")
        @classmethod
        def _one_more(cls, size):
            return size + 1

    (problem,) = broken(plugin(Growing), "settings", settings={"size": 2})
    assert problem.startswith("plugin 'bad': its settings come back from JSON as Growing(size=4), got Growing(size=3)")


def test_a_flat_name_that_reads_back_another_value_is_told():
    class Growing(Section):
        flat: ClassVar = {"bad_size": "size"}

        size: int = 1
        """Units."""

        @field_validator("size")
        @classmethod
        def _one_more(cls, size):
            return size + 1

    told = "plugin 'bad': its flat name 'bad_size' reads back 3, got 2. Correct `flat`."
    assert told in broken(plugin(Growing), "settings", settings={"size": 1})


def test_settings_that_leave_the_plugin_off_are_told():
    class Switched(Section):
        switch: ClassVar = "bad_alpha"
        flat: ClassVar = {"bad_alpha": "alpha"}
        alpha: float | None = None
        """Strength; None for off."""

    assert broken(plugin(Switched), "settings", flat={"bad_alpha": None}) == [
        "plugin 'bad': is off with {'bad_alpha': None}. Pass settings that turn it on."
    ]


# Hooks


def test_a_misspelt_hook_is_told_with_the_right_name():
    (problem,) = broken(plugin(on_step_edn=lambda self: None), "hooks")
    assert problem == "plugin 'bad': there is no hook 'on_step_edn'. Did you mean 'on_step_end'?"


def test_a_misspelt_question_is_told_with_the_right_name():
    (problem,) = broken(plugin(write_chekpoint=lambda self: None), "hooks")
    assert problem == (
        "plugin 'bad': its method 'write_chekpoint' is no hook. Did you mean 'write_checkpoint'? "
        "Else give it a leading underscore."
    )


def test_an_argument_that_a_hook_lacks_is_told():
    (problem,) = broken(plugin(on_log=lambda self, rows: None), "hooks")
    assert "on_log" in problem
    assert "rows" in problem


def test_a_plugin_without_hooks_is_told():
    (problem,) = broken(plugin(on_epoch_end=None), "hooks")
    assert problem == "plugin 'bad': has no hook. Name a method like one of those in trainer_core.hookspecs."


def test_a_constructor_that_fails_is_told():
    def fail(self, settings):
        raise KeyError("worms")

    (problem,) = broken(plugin(__init__=fail), "hooks")
    assert problem.startswith("plugin 'bad': cannot be checked for 'hooks', got KeyError: 'worms' (test_testing.py:")


# Runs


def fail(*_):
    raise ValueError("worms")


def test_a_plugin_that_fails_in_a_run_is_told_with_hook_and_line():
    problems = broken(plugin(on_evaluate=lambda self: fail()), "run")
    assert len(problems) == 1
    assert problems[0].startswith("plugin 'bad': breaks a run that finishes, got ValueError: worms (test_testing.py:")
    assert "raised in plugin 'bad', hook on_evaluate" in problems[0]


def test_a_best_effort_plugin_cannot_hide_its_failures():
    problems = broken(plugin(on_step_begin=lambda self: fail(), critical=False), "run")
    assert problems[0] == (
        "plugin 'bad': its hooks failed 3 times in a run that finishes. See the log of trainer_core.bus."
    )


def test_a_plugin_that_fails_when_it_hears_of_an_error_is_told():
    assert broken(plugin(on_exception=lambda self: fail()), "run") == [
        f"plugin 'bad': fails at the end of a run that {outcome}: then ValueError('worms') was raised in plugin 'bad', "
        "hook on_exception. Make its hooks work there."
        for outcome in ("fails in an update", "fails before its first update")
    ]


def test_a_teardown_that_needs_a_begin_is_told():
    class Hasty:
        settings_type = PatienceSettings

        def __init__(self, settings):
            pass

        def on_train_begin(self):
            self.begun = True

        def on_teardown(self):
            del self.begun

    (problem,) = broken(Hasty, "run")
    told = "plugin 'hasty': fails at the end of a run that fails before its first update: then AttributeError"
    assert problem.startswith(told)
    assert problem.endswith("was raised in plugin 'hasty', hook on_teardown. Make its hooks work there.")


# State


@pytest.mark.parametrize(("there", "missing"), [("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")])
def test_half_a_state_is_told(there, missing):
    (problem,) = broken(plugin(**{there: lambda self, state=None: {}}), "state")
    assert problem == f"plugin 'bad': has {there} and no {missing}, so its state is not saved. Write both."


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"a": [1, {"b": (1, 2)}]}, "state['a'][1]['b'] is a tuple, got (1, 2)"),
        ({1: 2}, "state has the key 1, which is no text"),
        ({"best": float("inf")}, "state['best'] is inf, which JSON does not have"),
        ({"step": {7}}, "state['step'] is a set, got {7}"),
    ],
)
def test_a_state_that_is_neither_json_nor_tensors_is_told(state, told):
    kind = plugin(state_dict=lambda self: state, load_state_dict=lambda self, state: None)
    assert broken(kind, "state") == [
        f"plugin 'bad': its {told}. Keep to mappings with text as keys, lists, text, numbers, None and tensors."
    ]


def counting(load):
    """Makes a plugin that counts epochs and loads its state by `load`."""

    def count(self):
        self.count = self.count + 1

    return plugin(
        count=0,
        on_epoch_end=count,
        state_dict=lambda self: {"count": self.count},
        load_state_dict=load,
    )


def test_a_state_that_is_not_loaded_is_told():
    assert broken(counting(lambda self, state: None), "state") == [
        "plugin 'bad': its state changes when a fresh instance loads it, from {'count': 2} to {'count': 0}. "
        "Load all that is saved."
    ]


def test_a_state_that_cannot_be_loaded_before_training_is_told():
    (problem,) = broken(counting(lambda self, state: self.trainer), "state")
    assert problem.startswith("plugin 'bad': a fresh instance cannot load its state, got AttributeError: ")


def versioned(version, **members):
    """Makes a plugin whose state has a version."""
    usual = {"state_dict": lambda self: {"seen": 0}, "load_state_dict": lambda self, state: state["seen"]}
    return plugin(**usual, state_version=version, **members)


def test_a_plugin_that_migrates_what_older_releases_saved_is_right():
    kind = versioned(3, migrate_state_dict=lambda self, state, version: {"seen": state[f"v{version}"]})
    check_plugin(kind, promises=["state"], old_states={1: {"v1": 0}, 2: {"v2": 0}})


@pytest.mark.parametrize(
    ("kind", "old_states", "told"),
    [
        (
            versioned(0),
            {},
            "plugin 'bad': state_version must be a whole number of at least 1, got 0. "
            "Begin with 1, and add 1 whenever the state takes another form.",
        ),
        (
            versioned(1, migrate_state_dict=lambda self, state, version: state),
            {},
            "plugin 'bad': has migrate_state_dict and state_version 1, so it is never called. Raise state_version.",
        ),
        (
            versioned(2, migrate_state_dict=lambda self, state, version: state),
            {},
            "plugin 'bad': migrates states, and the check got none. Pass old_states={1: ...}.",
        ),
        (
            versioned(2, migrate_state_dict=lambda self, state, version: state),
            {1: {"sightings": 3}},
            "plugin 'bad': cannot take its state of version 1, got KeyError: 'seen' (test_testing.py:",
        ),
    ],
    ids=["no version", "never called", "no old state", "fails"],
)
def test_a_version_of_a_state_that_cannot_be_kept_is_told(kind, old_states, told):
    (problem,) = broken(kind, "state", old_states=old_states)
    assert problem.startswith(told)


# The model


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


BLEMISHES = {
    "a forward hook": (lambda model: model.head.register_forward_hook(fail_not), "leaves head: _forward_hooks["),
    "an attribute": (lambda model: setattr(model, "seen", 1), "leaves the model: seen = a int"),
    "a forward of its own": (lambda model: setattr(model.head, "forward", model.head.forward), "leaves head: forward"),
    "a parametrization": (
        lambda model: parametrize.register_parametrization(model.head, "weight", Doubled()),
        "changes head: its class from Linear to ParametrizedLinear",
    ),
    "a buffer": (lambda model: model.register_buffer("mask", torch.ones(1)), "leaves the model: _buffers['mask']"),
    "a frozen parameter": (
        lambda model: model.head.weight.requires_grad_(False),
        "changes parameter head.weight: kind",
    ),
    "a parameter's hook": (
        lambda model: model.head.bias.register_post_accumulate_grad_hook(fail_not),
        "leaves parameter head.bias: _post_accumulate_grad_hooks[",
    ),
    "another parameter": (
        lambda model: setattr(model.head, "bias", nn.Parameter(torch.zeros(3))),
        "changes head: _parameters['bias']",
    ),
    "another module": (
        lambda model: setattr(model, "dropout", nn.Identity()),
        "changes the model: _modules['dropout']",
    ),
}


def fail_not(*_):
    """Does nothing."""


@pytest.mark.parametrize("blemish", BLEMISHES)
def test_what_is_left_on_the_model_is_told(blemish):
    leave, told = BLEMISHES[blemish]
    problems = broken(plugin(on_train_begin=lambda self, trainer: leave(trainer.model) and None), "model")
    assert any(problem.startswith(f"plugin 'bad': {told}") for problem in problems), problems
    assert problems[0].endswith(" on the model after a run that finishes. Undo it in on_teardown.")


def test_a_training_mode_that_is_left_changed_is_told():
    (problem, *_) = broken(plugin(on_teardown=lambda self, trainer: trainer.model.head.eval() and None), "model")
    assert problem == (
        "plugin 'bad': changes head: training from True to False on the model after a run that finishes. "
        "Undo it in on_teardown."
    )


def test_what_is_undone_only_when_a_run_ends_well_is_told():
    def begin(self, trainer):
        self.handle = trainer.model.register_forward_hook(fail_not)

    problems = broken(plugin(on_train_begin=begin, on_train_end=lambda self: self.handle.remove()), "model")
    assert len(problems) == 1
    assert problems[0].endswith(" on the model after a run that fails in an update. Undo it in on_teardown.")


# The process


@pytest.fixture
def process_is_put_back(monkeypatch):
    """Puts back what the plugins of these tests leave."""
    states = random.getstate(), torch.get_rng_state()
    handler = signal.getsignal(signal.SIGUSR2)
    monkeypatch.setenv("LEFT_BY_A_PLUGIN", "no")
    monkeypatch.setattr(Trainer, "log", Trainer.log)
    level = logging.getLogger("left.by.a.plugin").level
    yield
    random.setstate(states[0])
    torch.set_rng_state(states[1])
    signal.signal(signal.SIGUSR2, handler)
    logging.getLogger("left.by.a.plugin").setLevel(level)
    logging.getLogger("left.by.a.plugin").handlers.clear()
    torch.set_grad_enabled(True)


LEFTOVERS = {
    "a logger's level": (
        lambda self: logging.getLogger("left.by.a.plugin").setLevel(logging.ERROR),
        "leaves logger left.by.a.plugin: level = 'ERROR'",
    ),
    "a logger's handler": (
        lambda self: logging.getLogger("left.by.a.plugin").addHandler(logging.NullHandler()),
        "leaves logger left.by.a.plugin: handler 0 = a NullHandler",
    ),
    "a signal handler": (lambda self: signal.signal(signal.SIGUSR2, fail_not), "changes signal <Signals.SIGUSR2: "),
    "an environment variable": (
        lambda self: os.environ.update(LEFT_BY_A_PLUGIN="a secret"),
        "changes environment variable LEFT_BY_A_PLUGIN from … to …",
    ),
    "a gradient mode": (lambda self: torch.set_grad_enabled(False), "changes torch's gradient mode from True to False"),
    "a method of Trainer": (lambda self: setattr(Trainer, "log", fail_not), "changes Trainer.log from "),
}


@pytest.mark.usefixtures("process_is_put_back")
@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_what_is_left_in_the_process_is_told(leftover):
    leave, told = LEFTOVERS[leftover]
    problems = broken(plugin(on_teardown=lambda self: leave(self) and None), "process")
    assert problems[0].startswith(f"plugin 'bad': {told}"), problems
    assert problems[0].endswith(" in the process after a run that finishes. Put it back in on_teardown.")


@pytest.mark.usefixtures("process_is_put_back")
@pytest.mark.parametrize(
    ("draw", "whose"), [(random.random, "python"), (partial(torch.rand, 1), "torch")], ids=["python", "torch"]
)
def test_a_constructor_that_draws_random_numbers_is_told(draw, whose):
    problems = broken(plugin(__init__=lambda self, settings: draw() and None), "process")
    assert problems[0] == (
        f"plugin 'bad': changes {whose}'s random state from … to … in the process after a run that finishes. "
        "Put it back in on_teardown."
    )


def test_a_thread_that_is_left_running_is_told():
    done = threading.Event()
    leave = lambda self: threading.Thread(target=done.wait, name="left").start()  # noqa: E731 # a member, not a function
    try:
        problems = broken(plugin(on_train_begin=leave), "process")
    finally:
        done.set()
    assert problems[0].startswith("plugin 'bad': leaves thread left = ")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not tell which files are open")
def test_a_file_that_is_left_open_is_told():
    files = []

    def begin(self, trainer):
        files.append((Path(trainer.args.output_dir) / "mine.txt").open("w"))

    problems = broken(plugin(on_train_begin=begin), "process")
    for file in files:
        file.close()
    assert problems[0] == (
        "plugin 'bad': leaves the file mine.txt open in the process after a run that finishes. "
        "Put it back in on_teardown."
    )


# Time and blocking


def test_work_outside_the_hooks_is_told():
    def begin(self, trainer):
        log = trainer.log
        trainer.log = lambda logs: log(dict(logs))

    assert broken(plugin(on_train_begin=begin), "time") == [
        "plugin 'bad': replaces trainer.log, so its time there is not accounted for. Work in the hooks."
    ]


def test_a_plugin_that_leaves_the_bus_is_told():
    kind = plugin(on_train_begin=lambda self, trainer: trainer.pop_callback(self) and None)
    assert broken(kind, "time") == [
        "plugin 'bad': takes itself off the bus, where its time would be kept. Leave it there."
    ]


def test_a_plugin_that_falsifies_its_account_is_told():
    def reset(self, trainer):
        trainer.bus.members["bad"].seconds = 0.0
        trainer.bus.members["bad"] = types.SimpleNamespace(seconds=0.0, plugin=self, failures=0, name="bad")

    assert broken(plugin(on_teardown=reset), "time") == [
        "plugin 'bad': its time is not accounted for. Work in the hooks, and leave the bus its accounts."
    ]


def test_a_plugin_that_gets_onto_the_bus_although_it_is_blocked_is_told(monkeypatch):
    kind = plugin()
    begin = Trainer.__init__

    def smuggle(self, *arguments, **options):
        begin(self, *arguments, **options)
        self.add_callback(kind(None))

    monkeypatch.setattr(Trainer, "__init__", smuggle)
    assert broken(kind, "blocking") == [
        f"plugin 'bad': is on the bus although it is {way}. Let the entry point alone put it there."
        for way in ("blocked", "off")
    ]


# Helpers


def test_a_run_does_24_updates_with_two_evaluations_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = run()
    assert trainer.state.global_step == 24
    assert [row["step"] for row in trainer.state.log_history if "eval_accuracy" in row] == [12, 24]
    assert list(tmp_path.iterdir()) == []


def test_a_run_takes_options_plugins_model_and_data(recorder):
    model, plugin = tiny_model(), recorder("on_step_end")
    trainer = run([plugin], model=model, train_dataset=tiny_dataset(4), num_train_epochs=1)
    assert trainer.model is model
    assert plugin.heard == ["on_step_end"] * 2


def test_a_run_has_only_the_installed_plugins_that_are_named():
    assert list(run().bus.members) == []
    assert list(run(installed=["logging"]).bus.members) == ["logging"]


def test_only_blocks_the_others_for_a_time(monkeypatch):
    monkeypatch.setenv("TRAINER_CORE_BLOCK_PLUGINS", "before")
    with only("logging"):
        assert "logging" not in os.environ["TRAINER_CORE_BLOCK_PLUGINS"].split(",")
        assert "console" in os.environ["TRAINER_CORE_BLOCK_PLUGINS"].split(",")
    assert os.environ["TRAINER_CORE_BLOCK_PLUGINS"] == "before"


def test_the_tiny_model_is_the_same_for_a_seed_and_draws_from_nobodys_random_state():
    before = torch.get_rng_state()
    one, same, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_the_tiny_model_learns_the_tiny_dataset():
    trainer = run(num_train_epochs=30, learning_rate=1e-2, lr_scheduler_type="constant")
    assert trainer.evaluate(tiny_dataset())["eval_accuracy"] > 0.9


def test_differences_say_what_came_went_and_changed():
    assert differences({"a": 1, "b": 1}, {"b": 2, "c": 3}) == [
        "changes b from 1 to 2",
        "leaves c = 3",
        "takes away a = 1",
    ]


def test_a_run_of_the_core_alone_leaves_nothing(tmp_path):
    options = {"max_grad_norm": 0.5, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}
    run(**options)  # what torch itself changes when it is first used so
    model = tiny_model()
    of_model, of_process = model_marks(model), process_marks()
    run(model=model, output_dir=tmp_path, **options)
    with pytest.raises(NonFiniteLossError):
        run(model=tiny_model(), output_dir=tmp_path, learning_rate=1e38, max_grad_norm=0.0)
    assert differences(of_model, model_marks(model)) == []
    assert differences(of_process, process_marks()) == []
    assert open_files(tmp_path) == []


def test_importing_the_checks_needs_no_test_tool():
    code = "import sys, trainer_core.testing; print(sorted({'pytest', 'hypothesis'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_plugin_in_the_documentation_keeps_its_promises(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    source = page.partition("## A whole plugin")[2].partition("```python\n")[2].partition("```")[0]
    tmp_path.joinpath("documented.py").write_text(source)  # in a file, where the lines under settings are read
    monkeypatch.syspath_prepend(tmp_path)
    check_plugin(importlib.import_module("documented").Patience)
