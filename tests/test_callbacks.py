from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer_core import PluginError, TrainerCallback, TrainerControl


class EarlyStoppingCallback(TrainerCallback):
    """The guide's own, word for word."""

    def __init__(self, num_steps=10):
        self.num_steps = num_steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.num_steps:
            return {"should_training_stop": True}
        else:  # noqa: RET505 # the guide's
            return {}


class Answering(TrainerCallback):
    """Gives `answer(state, control)` in one event."""

    def __init__(self, event, answer):
        setattr(self, event, lambda args, state, control, **context: answer(state, control))


class Counting(TrainerCallback):
    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def steps_of(trainer, phase):
    return [entry.step for entry in trainer.running.loop.journal.entries if entry.phase == phase]


def asked(trainer):
    """Author and reason of every transition that somebody but the loop asked for."""
    return [(entry.by, entry.why) for entry in trainer.running.loop.journal.entries if entry.by != "loop"]


# Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["callbacks", "callback"])
def test_the_guides_callback_stops_the_run(make_trainer, argument):
    trainer = make_trainer(given={argument: [EarlyStoppingCallback(4)]}, num_train_epochs=3)
    trainer.train()
    assert (trainer.state.global_step, trainer.outcome) == (4, "stopped")
    assert trainer.stop_request.by == "EarlyStoppingCallback"
    assert trainer.stop_request.why == "should_training_stop in on_step_end"


def test_a_callback_may_be_given_as_its_class(make_trainer):
    trainer = make_trainer(given={"callbacks": [EarlyStoppingCallback]}, num_train_epochs=3)
    trainer.train()
    assert trainer.state.global_step == 10


def own_control(state, control):
    control.should_training_stop = state.global_step == 2
    return control


def another_control(state, control):
    return TrainerControl(should_training_stop=state.global_step == 2)


def flag_alone(state, control):
    control.should_training_stop = state.global_step == 2


@pytest.mark.parametrize("answer", [own_control, another_control, flag_alone])
def test_a_callback_may_return_the_control_or_a_new_one_or_nothing(make_trainer, answer):
    trainer = make_trainer(given={"callbacks": [Answering("on_step_end", answer)]})
    trainer.train()
    assert (trainer.state.global_step, trainer.outcome) == (2, "stopped")


@pytest.mark.parametrize(("answer", "kind"), [(True, "bool"), (3, "int"), ("stop", "str"), (["stop"], "list")])
def test_an_answer_of_another_type_is_refused_with_the_callbacks_name(make_trainer, answer, kind):
    trainer = make_trainer(given={"callbacks": [Answering("on_step_end", lambda state, control: answer)]})
    with pytest.raises(PluginError) as caught:
        trainer.train()
    assert str(caught.value) == (
        f"callback 'Answering', on_step_end: returned {kind}. Return nothing, the control, or a mapping of its flags."
    )
    assert caught.value.__notes__ == [
        "raised in plugin 'Answering', hook on_step_end",
        "raised in phase STEP, after step 1",
    ]


def test_a_flag_that_does_not_exist_is_refused_with_the_right_one(make_trainer):
    answer = {"should_train_stop": True}
    trainer = make_trainer(given={"callbacks": [Answering("on_step_end", lambda state, control: answer)]})
    with pytest.raises(PluginError) as caught:
        trainer.train()
    assert str(caught.value) == (
        "callback 'Answering', on_step_end: returned the flag 'should_train_stop'. "
        "Did you mean 'should_training_stop'? Flags are should_training_stop, should_epoch_stop, should_save, "
        "should_evaluate, should_log."
    )


@pytest.mark.parametrize("value", ["false", [0], {}])
def test_a_flag_that_is_neither_true_nor_false_is_refused(make_trainer, value):
    trainer = make_trainer(given={"callbacks": [Answering("on_step_end", lambda *_: {"should_training_stop": value})]})
    with pytest.raises(PluginError) as caught:
        trainer.train()
    assert str(caught.value) == (
        "callback 'Answering', on_step_end: returned a flag 'should_training_stop' that is neither true nor false, "
        f"got {value!r}. Use True or False."
    )


@pytest.mark.parametrize("value", [1, np.True_, torch.tensor(True)])
def test_a_flag_may_be_any_truth_value(make_trainer, value):
    trainer = make_trainer(given={"callbacks": [Answering("on_step_end", lambda *_: {"should_training_stop": value})]})
    trainer.train()
    assert trainer.state.global_step == 1


# Flags ------------------------------------------------------------------------------------------------------------


def raising(flag, at_step):
    return lambda state, control: {flag: state.global_step == at_step}


def test_should_evaluate_evaluates_once(make_trainer):
    trainer = make_trainer(given={"callbacks": [Answering("on_step_end", raising("should_evaluate", 3))]})
    trainer.train()
    assert steps_of(trainer, "EVAL") == [3]
    assert asked(trainer)[0] == ("Answering", "should_evaluate in on_step_end")


def test_should_save_saves_once(make_trainer, writer):
    given = {"callbacks": [Answering("on_step_end", raising("should_save", 3))], "plugins": [writer]}
    make_trainer(given=given).train()
    assert writer.steps == [3]


def test_should_log_logs_a_row_once(make_trainer):
    trainer = make_trainer(given={"callbacks": [Answering("on_step_end", raising("should_log", 3))]})
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [3]


def test_should_epoch_stop_goes_on_with_the_next_epoch(make_trainer):
    stopping = Answering("on_step_end", raising("should_epoch_stop", 3))
    trainer = make_trainer(given={"callbacks": [stopping]}, num_train_epochs=2)
    trainer.train()
    assert (trainer.state.global_step, trainer.state.epoch, trainer.outcome) == (13, 2.0, "completed")
    assert ("Answering", "should_epoch_stop in on_step_end") in asked(trainer)


def test_a_flag_is_lowered_when_it_was_read(make_trainer):
    seen = []

    def watch(state, control):
        seen.append(control.should_evaluate)

    callbacks = [Answering("on_step_end", raising("should_evaluate", 1)), Answering("on_step_begin", watch)]
    make_trainer(given={"callbacks": callbacks}, max_steps=3).train()
    assert seen == [False, False, False]


@pytest.mark.parametrize("event", ["on_init_end", "on_train_end"])
def test_flags_outside_of_the_run_change_nothing(make_trainer, event):
    stopping = Answering(event, lambda state, control: {"should_training_stop": True, "should_log": True})
    trainer = make_trainer(given={"callbacks": [stopping]})
    trainer.train()
    assert (trainer.state.global_step, trainer.outcome) == (10, "completed")
    assert len(trainer.state.log_history) == 1


# Events -----------------------------------------------------------------------------------------------------------


def test_every_event_is_called_with_the_guides_arguments(make_trainer, writer):
    calls = {}

    def noting(event):
        def note(self, args, state, control, **context):
            calls[event] = (args, state, control, context)

        return note

    events = [name for name in vars(TrainerCallback) if name.startswith("on_")]
    Everywhere = type("Everywhere", (TrainerCallback,), {event: noting(event) for event in events})  # noqa: N806
    saving = Answering("on_step_end", raising("should_save", 2))
    tokenizer = object()
    given = {"callbacks": [Everywhere(), saving], "plugins": [writer], "processing_class": tokenizer}
    trainer = make_trainer(given=given, gradient_accumulation_steps=2, eval_strategy="epoch")
    trainer.train()
    trainer.predict(trainer.eval_dataset)
    common = [
        *["model", "tokenizer", "processing_class", "optimizer", "lr_scheduler"],
        *["train_dataloader", "eval_dataloader"],
    ]
    more = {"on_evaluate": ["metrics"], "on_predict": ["metrics"], "on_log": ["logs"]}
    assert {event: list(context) for event, (*_, context) in calls.items()} == {
        event: common + more.get(event, [])
        for event in (
            *["on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin", "on_substep_end"],
            *["on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_save", "on_epoch_end"],
            *["on_prediction_step", "on_log", "on_evaluate", "on_train_end", "on_predict"],
        )
    }
    args, state, control, context = calls["on_train_end"]
    assert (args, state, control) == (trainer.args, trainer.state, trainer.control)
    assert (context["model"], context["optimizer"]) == (trainer.model, trainer.optimizer)
    assert (context["tokenizer"], context["train_dataloader"]) == (tokenizer, trainer.train_dataloader)


def test_an_event_that_is_not_overridden_is_never_called(make_trainer):
    trainer = make_trainer(given={"callbacks": [EarlyStoppingCallback()]})
    assert trainer.bus.hooks_of("EarlyStoppingCallback") == ["on_step_end"]


def test_a_row_that_a_callback_changes_stays_as_it_was_logged(make_trainer):
    class Popping(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logs.clear()

    trainer = make_trainer(given={"callbacks": [Popping()]})
    trainer.log({"x": 1})
    assert trainer.state.log_history == [{"x": 1, "epoch": 0.0, "step": 0}]


def test_a_row_has_its_step_in_the_history_and_in_the_state_alone(make_trainer):
    seen = []

    class Looking(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append((state.log_history[-1]["step"], list(logs)))

    make_trainer(given={"callbacks": [Looking()]}).log({"x": 1})
    assert seen == [(0, ["x", "epoch"])]


def test_metrics_that_a_callback_adds_are_returned(make_trainer):
    class Adding(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_mine"] = 7.0

    assert make_trainer(given={"callbacks": [Adding()]}).evaluate()["eval_mine"] == 7.0


# Which objects ----------------------------------------------------------------------------------------------------


def test_two_callbacks_of_one_class_are_both_called_under_names_of_their_own(make_trainer):
    first, second = Counting(), Counting()
    trainer = make_trainer(given={"callbacks": [first, second, Counting]})
    trainer.train()
    assert (first.steps, second.steps) == (10, 10)
    assert list(trainer.bus.members) == ["Counting", "Counting-2", "Counting-3"]


def test_any_object_with_hook_methods_is_a_callback(make_trainer, recorder):
    noting = recorder("on_epoch_end")
    make_trainer(given={"callbacks": [noting]}).train()
    assert noting.heard == ["on_epoch_end"]


@pytest.mark.parametrize("thing", [object(), None, 3])
def test_an_object_without_hooks_is_refused_by_name(make_trainer, thing):
    with pytest.raises(PluginError) as caught:
        make_trainer(given={"callbacks": [thing]})
    kind = type(thing).__name__
    assert str(caught.value) == (
        f"callbacks: {kind!r} is no callback and has no hook, got {kind}. "
        f"Pass a TrainerCallback (class or instance) or an object with methods named like hooks."
    )


def test_the_guides_form_without_the_base_class_is_refused_with_the_wrong_argument(make_trainer):
    class Plain:
        def on_step_end(self, args, state, control, **kwargs):
            raise AssertionError

    with pytest.raises(PluginError, match=r"^plugin 'Plain': .*'args'"):
        make_trainer(given={"callbacks": [Plain()]})


def test_a_misspelt_event_is_refused_with_the_right_one(make_trainer):
    class Misspelt(TrainerCallback):
        def on_step_ends(self, args, state, control, **kwargs):
            raise AssertionError

    with pytest.raises(PluginError) as caught:
        make_trainer(given={"callbacks": [Misspelt()]})
    assert str(caught.value) == "callback 'Misspelt': there is no event 'on_step_ends'. Did you mean 'on_step_end'?"


def test_an_attribute_that_is_no_method_may_be_called_like_an_event(make_trainer):
    callback = EarlyStoppingCallback(1)
    callback.on_gpu = False
    trainer = make_trainer(given={"callbacks": [callback]})
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_class_that_needs_arguments_is_refused(make_trainer):
    with pytest.raises(PluginError) as caught:
        make_trainer(given={"callbacks": [Answering]})
    assert str(caught.value) == (
        "callbacks: 'Answering' is a class that needs arguments, missing a required argument: 'event'. "
        "Pass an instance."
    )


@pytest.mark.parametrize("handle", ["class", "instance", "name"])
def test_callbacks_are_added_and_taken_away(make_trainer, handle):
    counting = Counting()
    wanted = {"class": Counting, "instance": counting, "name": "Counting"}[handle]
    trainer = make_trainer()
    trainer.add_callback(counting)
    assert trainer.pop_callback(wanted) is counting
    assert trainer.pop_callback(wanted) is None
    trainer.add_callback(counting)
    trainer.remove_callback(wanted)
    trainer.train()
    assert counting.steps == 0


def test_a_callback_has_the_failure_policy_and_the_order_that_it_asks_for(make_trainer):
    class Fragile(TrainerCallback):
        critical = False
        before = ("Counting",)

        def on_epoch_end(self, args, state, control, **kwargs):
            raise OSError("mine")

    trainer = make_trainer(given={"callbacks": [Counting(), Fragile()]})
    trainer.train()
    assert (trainer.outcome, list(trainer.bus.members)) == ("completed", ["Fragile", "Counting"])


# Memory -----------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_callback_is_kept_with_the_run_under_its_name(make_trainer, acting):
    kept = {}
    keep = acting("on_epoch_end", lambda trainer: kept.update(trainer.state_dict()))
    make_trainer(given={"callbacks": [Counting(), Counting(), keep]}, max_steps=10).train()
    assert kept["plugins"] == {"Counting": {"steps": 10}, "Counting-2": {"steps": 10}}


def test_the_memory_of_a_callback_comes_back_and_that_of_an_absent_one_is_kept(make_trainer, acting):
    kept, counting = {}, Counting()
    make_trainer(
        given={"callbacks": [acting("on_epoch_end", lambda trainer: kept.update(trainer.state_dict()))]}
    ).train()
    kept["plugins"] = {"Counting": {"steps": 100}, "Absent": {"x": 1}}
    again = {}
    trainer = make_trainer(
        given={
            "callbacks": [
                counting,
                acting("on_train_begin", lambda trainer: trainer.load_state_dict(kept)),
                acting("on_train_end", lambda trainer: again.update(trainer.state_dict())),
            ]
        },
    )
    trainer.train()
    assert again["plugins"] == {"Counting": {"steps": 100}, "Absent": {"x": 1}}


# What a method takes ----------------------------------------------------------------------------------------------


class Naming(TrainerCallback):
    """Names what it wants, and takes no other keyword."""

    def __init__(self):
        self.got = []

    def on_log(self, args, state, control, logs):
        self.got.append(sorted(logs))

    def on_step_end(self, args, state, control, *, optimizer, model=None):
        self.got.append((type(optimizer).__name__, type(model).__name__))


def test_a_callback_without_kwargs_gets_what_it_names(make_trainer, make_model):
    naming = Naming()
    make_trainer(given={"callbacks": [naming]}, max_steps=1).train()
    assert naming.got[0] == ("AdamW", type(make_model()).__name__)
    assert "train_loss" in naming.got[1]


class Short(TrainerCallback):
    def on_step_end(self, args, state):
        return None


class Wanting(TrainerCallback):
    def on_step_end(self, args, state, control, dataloader):
        return None


@pytest.mark.parametrize(("kind", "takes"), [(Short, "(args, state)"), (Wanting, "(args, state, control, dataloader)")])
def test_a_callback_that_takes_too_little_or_what_there_is_not_is_refused_when_it_is_added(make_trainer, kind, takes):
    with pytest.raises(PluginError) as caught:
        make_trainer(given={"callbacks": [kind]})
    assert str(caught.value) == (
        f"callback '{kind.__name__}': on_step_end must take args, state and control, and of the rest only what there "
        f"is, got on_step_end{takes}. Write on_step_end(self, args, state, control, **kwargs)."
    )


def test_a_misspelt_flag_of_the_control_is_an_error(make_trainer):
    def misspelling(state, control):
        control.should_stop_training = True

    trainer = make_trainer(given={"callbacks": [Answering("on_step_end", misspelling)]})
    with pytest.raises(AttributeError, match="should_stop_training"):
        trainer.train()


def test_the_eval_dataloader_is_in_the_context_from_the_first_evaluation_on(make_trainer):
    seen = {}

    class Looking(TrainerCallback):
        def on_train_begin(self, args, state, control, eval_dataloader=None, **kwargs):
            seen["before"] = eval_dataloader

        def on_evaluate(self, args, state, control, eval_dataloader=None, **kwargs):
            seen["after"] = len(eval_dataloader.dataset)

    make_trainer(given={"callbacks": [Looking]}, eval_strategy="epoch").train()
    assert seen == {"before": None, "after": 40}


class Forgetful(Counting):
    def load_state_dict(self, state):
        raise KeyError("mine")


def test_an_error_in_a_callbacks_state_names_the_callback(make_trainer, acting):
    states = {}
    given = {"callbacks": [Counting()], "plugins": [acting("on_train_end", lambda t: states.update(t.state_dict()))]}
    make_trainer(given=given).train()
    states["plugins"] = {"Forgetful": states["plugins"]["Counting"]}
    loading = acting("on_train_begin", lambda trainer: trainer.load_state_dict(states))
    with pytest.raises(KeyError) as caught:
        make_trainer(given={"callbacks": [Forgetful()], "plugins": [loading]}).train()
    assert "raised in load_state_dict of plugin 'Forgetful'" in caught.value.__notes__
