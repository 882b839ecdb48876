from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import PluginError, hookimpl
from trainer_core.bus import MAX_FAILURES, SAMPLE_EVERY, Bus
from trainer_core.ordering import Member, ordered

TRAINER = object()  # the bus hands it on and never looks at it


def member(name, before=(), after=()):
    return Member(name, object(), critical=True, before=tuple(before), after=tuple(after))


def names(members):
    return [one.name for one in members]


def bus_of(**plugins):
    bus = Bus()
    for name, plugin in plugins.items():
        bus.register(plugin, name)
    bus.compile()
    return bus


class Hearing:
    """Writes its name into a shared list at each step end."""

    def __init__(self, name, heard, **wishes):
        self.name, self.heard = name, heard
        vars(self).update(wishes)

    def on_step_end(self, trainer):
        self.heard.append(self.name)


class First(Hearing):
    @hookimpl(tryfirst=True)
    def on_step_end(self, trainer):
        self.heard.append(self.name)


class Last(Hearing):
    @hookimpl(trylast=True)
    def on_step_end(self, trainer):
        self.heard.append(self.name)


class Failing:
    critical = False

    def __init__(self):
        self.calls = 0

    def on_step_end(self, trainer):
        self.calls += 1
        raise OSError("no route")

    on_log = on_step_end


class Answering:
    def __init__(self, answer, **wishes):
        self.answer = answer
        vars(self).update(wishes)

    def write_checkpoint(self):
        return self.answer


# Order ------------------------------------------------------------------------------------------------------------


@st.composite
def acyclic_wishes(draw):
    """Plugins in some true order, with wishes that agree with it, registered in another order."""
    true = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1))
    wishes = {name: ([], []) for name in true}
    for place, name in enumerate(true):
        wishes[name][0].extend(draw(st.lists(st.sampled_from([*true[place + 1 :], "absent"]), max_size=3)))
        wishes[name][1].extend(draw(st.lists(st.sampled_from([*true[:place], "absent"]), max_size=3)))
    return [member(name, *wishes[name]) for name in draw(st.permutations(true))]


@given(acyclic_wishes())
def test_every_wish_is_honoured_when_wishes_form_no_circle(members):
    places = {name: place for place, name in enumerate(names(ordered(members)))}
    assert sorted(places) == sorted(names(members))
    for one in members:
        assert all(places[one.name] < places[other] for other in one.before if other in places)
        assert all(places[one.name] > places[other] for other in one.after if other in places)


@given(st.permutations("abcde"))
def test_without_wishes_the_order_is_that_of_registration(registered):
    assert names(ordered(map(member, registered))) == list(registered)


@given(st.permutations("abcdef"))
def test_the_circle_is_named_and_nothing_beside_it(registered):
    wishes = {"a": ("b",), "b": ("c",), "c": ("a",), "d": (), "e": ("a",), "f": ()}
    after = {"d": ("a",)}
    with pytest.raises(PluginError, match=r"before/after form a circle\. Take one of the wishes back\.$") as caught:
        ordered([member(name, wishes[name], after.get(name, ())) for name in registered])
    circle = str(caught.value).split(":")[0].removeprefix("plugins ").split(", ")
    assert sorted(circle) == ["a", "b", "c"]


def test_a_plugin_before_itself_is_a_circle():
    with pytest.raises(PluginError, match=r"^plugins a: before/after form a circle"):
        ordered([member("a", ["a"])])


def test_before_and_after_decide_who_is_called_first():
    heard = []
    bus = bus_of(a=Hearing("a", heard, after=("c",)), b=Hearing("b", heard), c=Hearing("c", heard, before=("b",)))
    bus.tell("on_step_end", trainer=TRAINER)
    assert heard == ["c", "a", "b"]
    assert list(bus.members) == ["c", "a", "b"]


def test_tryfirst_and_trylast_are_bands_around_the_order():
    heard = []
    bus = bus_of(last=Last("last", heard), a=Hearing("a", heard), first=First("first", heard), b=Hearing("b", heard))
    bus.tell("on_step_end", trainer=TRAINER)
    bus.step_hooks()[0].on_step_end(TRAINER)
    assert heard == ["first", "a", "b", "last"] * 2


# What is refused --------------------------------------------------------------------------------------------------


def test_two_answers_to_one_question_are_refused_by_name():
    with pytest.raises(PluginError) as caught:
        bus_of(disk=Answering("x"), cloud=Answering("y"))
    assert str(caught.value) == (
        "plugins 'disk' and 'cloud': both answer write_checkpoint. "
        "Block one of them, or let one name the other in `before` or `after`."
    )


@pytest.mark.parametrize(
    ("wishes_of_disk", "wishes_of_cloud", "answer"),
    [({"before": ("cloud",)}, {}, "x"), ({}, {"before": ("disk",)}, "y"), ({"after": ("cloud",)}, {}, "y")],
)
def test_the_first_of_two_ordered_answers_decides(wishes_of_disk, wishes_of_cloud, answer):
    bus = bus_of(disk=Answering("x", **wishes_of_disk), cloud=Answering("y", **wishes_of_cloud))
    assert bus.ask("write_checkpoint", trainer=TRAINER) == answer


def test_a_question_passes_on_to_the_next_when_the_answer_is_none():
    bus = bus_of(disk=Answering(None, before=("cloud",)), cloud=Answering("y"))
    assert bus.ask("write_checkpoint", trainer=TRAINER) == "y"
    assert bus.ask("read_best_model", trainer=TRAINER) is None


def test_a_misspelt_hook_is_refused_with_the_right_name():
    class Misspelt:
        def on_step_ends(self, trainer):
            raise AssertionError

    with pytest.raises(PluginError) as caught:
        bus_of(mine=Misspelt())
    assert str(caught.value) == "plugin 'mine': there is no hook 'on_step_ends'. Did you mean 'on_step_end'?"


def test_a_hook_argument_that_does_not_exist_is_refused_with_plugin_hook_and_argument():
    class Asking:
        def on_step_end(self, trainer, loss):
            raise AssertionError

    with pytest.raises(PluginError) as caught:
        bus_of(mine=Asking())
    message = str(caught.value)
    assert message.startswith("plugin 'mine': ")
    assert "on_step_end(self, trainer, loss)" in message or "on_step_end(trainer, loss)" in message
    assert "{'loss'}" in message


def test_a_hook_that_is_no_method_is_refused_and_not_passed_over():
    plugin = type("Mine", (), {"on_step_end": partial(print, "step")})()
    with pytest.raises(PluginError) as caught:
        bus_of(mine=plugin)
    assert str(caught.value) == "plugin 'mine': on_step_end is no method, got partial. Write a method."


@pytest.mark.parametrize("kind", ["wrapper", "hookwrapper"])
def test_hook_wrappers_are_refused(kind):
    class Wrapping:
        @hookimpl(**{kind: True})
        def on_step_end(self, trainer):
            yield

    with pytest.raises(PluginError) as caught:
        bus_of(mine=Wrapping())
    assert str(caught.value) == (
        "plugin 'mine': on_step_end is a hook wrapper. Write a plain hook, ordered by before/after."
    )


@pytest.mark.parametrize("wrong", ["on_step_ends", "on_step_end"])
def test_a_refused_plugin_leaves_nothing_on_the_bus(wrong):
    heard = []
    bus = bus_of(good=Hearing("good", heard))
    bad = type("Bad", (), {wrong: lambda self, trainer, more: None, "on_log": lambda self: heard.append("bad")})()
    with pytest.raises(PluginError):
        bus.register(bad, "bad")
    bus.compile()
    bus.tell("on_step_end", trainer=TRAINER)
    bus.tell("on_log", trainer=TRAINER, logs={})
    assert (list(bus.members), heard) == (["good"], ["good"])


def test_a_name_that_is_taken_is_refused():
    bus = bus_of(mine=Hearing("a", []))
    with pytest.raises(PluginError) as caught:
        bus.register(Hearing("b", []), "mine")
    assert str(caught.value) == "plugin 'mine': is registered already. Give one of the two another name."


def test_an_object_that_is_registered_twice_is_refused_and_keeps_its_first_place():
    heard = []
    plugin = Hearing("a", heard)
    bus = bus_of(one=plugin)
    with pytest.raises(PluginError) as caught:
        bus.register(plugin, "two")
    assert str(caught.value) == (
        "plugin 'two': equals 'one', which is registered already. "
        "Register an object once, and give a dataclass that is a plugin eq=False."
    )
    bus.compile()
    bus.tell("on_step_end", trainer=TRAINER)
    assert (heard, list(bus.members)) == (["a"], ["one"])


def test_plugins_that_are_equal_and_not_the_same_are_refused_without_a_loss():
    @dataclass
    class Equal:
        patience: int = 1

        def on_step_end(self):
            heard.append(self)

    heard = []
    bus = bus_of(one=Equal())
    with pytest.raises(PluginError, match=r"^plugin 'two': equals 'one'"):
        bus.register(Equal(), "two")
    bus.tell("on_step_end", trainer=TRAINER)
    assert heard == [Equal()]


def test_an_unknown_plugin_cannot_be_removed_and_a_near_name_is_offered():
    with pytest.raises(PluginError) as caught:
        bus_of(early_stopping=Hearing("a", [])).unregister("early_stoping")
    assert str(caught.value) == "plugin 'early_stoping': is not registered. Did you mean 'early_stopping'?"


# Failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [0, 1])
def test_a_critical_plugin_ends_the_run_with_its_own_error_and_a_note(timed):
    class Broken:
        def on_step_end(self, trainer):
            raise KeyError("mine")

    bus = bus_of(fragile=Broken())
    with pytest.raises(KeyError, match="mine") as caught:
        bus.step_hooks()[timed].on_step_end(TRAINER)
    assert caught.value.__notes__ == ["raised in plugin 'fragile', hook on_step_end"]


def test_the_note_stands_on_hooks_outside_of_steps_too():
    class Broken:
        def on_log(self, logs):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        bus_of(fragile=Broken()).tell("on_log", trainer=TRAINER, logs={})
    assert caught.value.__notes__ == ["raised in plugin 'fragile', hook on_log"]


@pytest.mark.parametrize("timed", [0, 1])
def test_a_best_effort_plugin_is_switched_off_after_its_failures_and_that_is_said(caplog, timed):
    failing, heard = Failing(), []
    bus = bus_of(tracker=failing, other=Hearing("other", heard))
    with caplog.at_level(logging.WARNING, "trainer_core.bus"):
        for _ in range(MAX_FAILURES + 2):
            bus.step_hooks()[timed].on_step_end(TRAINER)
    assert (failing.calls, len(heard)) == (MAX_FAILURES, MAX_FAILURES + 2)
    assert caplog.messages == [
        *(
            f"plugin 'tracker', hook on_step_end: failed ({count} of 3), got OSError('no route')."
            for count in range(1, MAX_FAILURES + 1)
        ),
        "plugin 'tracker': is switched off after 3 failures; the run goes on.",
    ]
    assert bus.members["tracker"].is_off


def test_a_plugin_that_was_switched_off_is_not_called_again_within_the_phase(caplog):
    failing = Failing()
    bus = bus_of(tracker=failing)
    bus.is_held = True  # as within a phase of a run
    for _ in range(MAX_FAILURES + 2):
        bus.tell("on_log", trainer=TRAINER, logs={})
    assert failing.calls == MAX_FAILURES
    assert len(caplog.messages) == MAX_FAILURES + 1


def test_a_best_effort_plugin_does_not_swallow_an_interrupt():
    class Interrupted:
        critical = False

        def on_step_end(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bus_of(mine=Interrupted()).step_hooks()[0].on_step_end(TRAINER)


def test_every_plugin_hears_the_last_hook_though_one_of_them_fails():
    heard = []
    names_ = ("a", "b", "c")

    def tearing(name):
        def on_teardown(self):
            heard.append(name)
            raise RuntimeError(name)

        return type(name, (), {"on_teardown": on_teardown})()

    bus = bus_of(**{name: tearing(name) for name in names_})
    with pytest.raises(RuntimeError, match="a") as caught:
        bus.tell_all("on_teardown", trainer=TRAINER)
    assert heard == ["a", "b", "c"]
    assert caught.value.__notes__ == [
        "raised in plugin 'a', hook on_teardown",
        "and raised in plugin 'b', hook on_teardown: RuntimeError('b')",
        "and raised in plugin 'c', hook on_teardown: RuntimeError('c')",
    ]


# Cost and time ----------------------------------------------------------------------------------------------------


def test_a_step_hook_that_nobody_implements_compiles_to_nothing():
    hooks = bus_of(mine=Hearing("a", [])).step_hooks()
    assert [[hook is None for hook in twin] for twin in hooks] == [[True, True, True, True, False]] * 2


def test_a_hook_that_takes_nothing_is_called_with_nothing():
    class Silent:
        calls = 0

        def on_step_end(self):
            self.calls += 1

    silent = Silent()
    bus_of(mine=silent).step_hooks()[0].on_step_end(TRAINER)
    assert silent.calls == 1


def test_the_timed_twin_counts_its_seconds_for_the_steps_that_are_not_timed(monkeypatch):
    ticks = iter(range(100))
    bus = bus_of(slow=Hearing("a", []), other=Hearing("b", []))
    monkeypatch.setattr("trainer_core.bus.perf_counter", lambda: float(next(ticks)))
    bus.step_hooks()[0].on_step_end(TRAINER)
    assert bus.members["slow"].seconds == 0.0
    bus.step_hooks()[1].on_step_end(TRAINER)
    assert [one.seconds for one in bus.members.values()] == [SAMPLE_EVERY, SAMPLE_EVERY]


def test_hooks_outside_of_steps_are_always_timed(monkeypatch):
    ticks = iter(range(100))
    bus = bus_of(slow=Hearing("a", []))
    monkeypatch.setattr("trainer_core.bus.perf_counter", lambda: float(next(ticks)))
    bus.tell("on_step_end", trainer=TRAINER)
    assert bus.members["slow"].seconds == 1.0


def test_one_update_in_sixteen_is_timed(make_trainer, monkeypatch):
    fired = []
    plain, timed = Bus._untimed, Bus._timed

    def noting(kind, build):
        def built(self, implementations):
            fire = build(self, implementations)
            return fire and (lambda trainer: (fired.append((trainer.state.global_step, kind)), fire(trainer)))

        return built

    monkeypatch.setattr(Bus, "_untimed", noting("plain", plain))
    monkeypatch.setattr(Bus, "_timed", noting("timed", timed))
    make_trainer(given={"plugins": [Hearing("a", [])]}, max_steps=33).train()
    assert [step for step, kind in fired if kind == "timed"] == [16, 32]
    assert [step for step, _ in fired] == list(range(1, 34))


# During a run -----------------------------------------------------------------------------------------------------


class Noting:
    """Notes hooks with the update they belong to."""

    def __init__(self):
        self.heard = []

    def on_step_begin(self, trainer):
        self.heard.append(f"begin {trainer.state.global_step + 1}")

    def on_step_end(self, trainer):
        self.heard.append(f"end {trainer.state.global_step}")

    def on_log(self, trainer):
        self.heard.append(f"log {trainer.state.global_step}")


@pytest.mark.parametrize("logs_after", [False, True])
def test_a_plugin_added_during_a_step_is_heard_from_the_next_phase_boundary_on(make_trainer, acting, logs_after):
    late = Noting()

    def add(trainer):
        if trainer.state.global_step == 1:  # in the second update
            trainer.add_callback(late)
            if logs_after:
                trainer.log({"x": 1})

    make_trainer(given={"plugins": [acting("on_step_begin", add)]}, max_steps=3).train()
    assert late.heard == ["begin 3", "end 3", "log 3"]


def test_a_plugin_removed_during_a_step_is_called_until_the_next_phase_boundary(make_trainer, acting):
    noting = Noting()

    def remove(trainer):
        if trainer.state.global_step == 1:
            assert trainer.pop_callback(noting) is noting
            trainer.log({"x": 1})

    make_trainer(given={"plugins": [acting("on_step_begin", remove), noting]}, max_steps=3).train()
    assert noting.heard == ["begin 1", "end 1", "log 1", "begin 2", "end 2"]


def test_a_plugin_added_between_runs_is_heard_in_the_next(make_trainer):
    trainer, late = make_trainer(max_steps=1), Noting()
    trainer.train()
    trainer.add_callback(late)
    trainer.log({"x": 1})
    assert late.heard == ["log 1"]
    trainer.train()
    assert late.heard == ["log 1", "begin 1", "end 1", "log 1"]


def test_a_best_effort_plugin_that_fails_in_steps_does_not_end_the_run(make_trainer):
    failing = Failing()
    trainer = make_trainer(given={"plugins": [failing]}, max_steps=6)
    trainer.train()
    assert (trainer.state.global_step, trainer.outcome, failing.calls) == (6, "completed", MAX_FAILURES)


def test_a_plugin_that_a_run_switched_off_is_on_again_in_the_next(make_trainer):
    failing = Failing()
    trainer = make_trainer(given={"plugins": [failing]}, max_steps=6)
    trainer.train()
    trainer.train()
    assert failing.calls == 2 * MAX_FAILURES


def test_blocked_plugins_are_not_imported():
    code = """
import sys
from trainer_core import Trainer, TrainingArguments
from trainer_core.settings.discovery import installed_names
from torch import nn
Trainer(nn.Linear(1, 1), TrainingArguments("x", block_plugins=list(installed_names())))
print([name for name in sys.modules if name.startswith(("trainer_core_", "trainer_core.console"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_hooks_of_a_plugin_are_known():
    assert bus_of(mine=Failing()).hooks_of("mine") == ["on_log", "on_step_end"]


@pytest.mark.parametrize("wish", [3, "console", ("console", 3)])
def test_a_wish_that_is_no_tuple_of_names_is_refused(wish):
    class Odd:
        before = wish

        def on_log(self, trainer):
            pass

    with pytest.raises(PluginError, match=r"^plugin 'odd': `before` must be a tuple of plugins' names, got "):
        Bus().register(Odd(), "odd")
