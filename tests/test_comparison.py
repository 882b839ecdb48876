"""Settings of a run that is resumed, against those of its checkpoint: every field, alone and with others."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Literal, get_args, get_origin
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trainer_core import Change, CheckpointError, PluginError, Section, TrainingArguments
from trainer_core.settings import comparison, vocabulary
from trainer_core.settings.changes import CHANGES
from trainer_core.settings.comparison import changes_of, differences, saved_settings
from trainer_core.settings.discovery import installed_plugins
from trainer_core.settings.names import OUR_PLUGINS

SECTIONS = {name: kind.settings_type for name, kind in installed_plugins().items()}
OPTIONS = {
    "eval_strategy": "steps",
    "eval_steps": 4,
    "metric_for_best_model": "accuracy",
    "train_sampling_strategy": "group_by_length",
    "neftune_noise_alpha": 5.0,
    "early_stopping_patience": 3,
    "max_time": 60.0,
    "report_to": "tensorboard",
}
ARGS = TrainingArguments("runs", **OPTIONS)
FIELDS = [("", name) for name in TrainingArguments.model_fields]
FIELDS += [(section, name) for section in ARGS.sections for name in SECTIONS[section].model_fields]
SECRET = {("hub_push", "token")}
MILD = {"global_step": 10, "max_steps": 20, "best_metric": None, "stopped_by": None}, 30
HARSH = {"global_step": 10, "max_steps": 20, "best_metric": 0.5, "stopped_by": None}, 5


def literals(annotation):
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(inner)
    return [value for part in inner for value in literals(part)]


def another(section, name, value):
    """Gives a value that the field takes and does not have."""
    model = SECTIONS[section] if section else TrainingArguments
    field = model.model_fields[name]
    adapter = TypeAdapter(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)
    choices = literals(field.annotation)
    texts = ["other", "all", "other.svg"]
    lists = [*([choice] for choice in choices), ["other"], ["SIGTERM"]]
    candidates = [not value, *choices, 7, 0.25, 8.5, *texts, *lists, {"other": {}}]
    for candidate in candidates:
        if candidate == value or (isinstance(value, bool) and not isinstance(candidate, bool)):
            continue
        try:
            adapter.validate_python(candidate, strict=True)
        except ValidationError:
            continue
        return candidate
    raise AssertionError(f"{section}.{name}: no other value is known")


def saved_with(changed, args=ARGS):
    """Gives what a checkpoint holds of a run with other values in some fields."""
    saved = copy.deepcopy(saved_settings(args))
    for section, name in changed:
        values = saved["values"][section] if section else saved["values"]
        values[name] = another(section, name, values[name])
    return saved


def shown_name(section, name):
    place = vocabulary.Place(section, name)
    return ARGS._words().flat_name(place) or str(place)


def found(saved, counters, max_steps, args=ARGS):
    return {change.name: change for change in differences(args, saved, counters, max_steps)}


def declared(section, name):
    return changes_of(SECTIONS[section] if section else TrainingArguments)[name]


# Declarations -----------------------------------------------------------------------------------------------------


def test_every_field_of_the_core_is_declared_and_nothing_else():
    assert sorted(CHANGES) == sorted(TrainingArguments.model_fields)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_field_of_our_plugins_is_declared_and_nothing_else(name):
    assert sorted(changes_of(SECTIONS[name])) == sorted(SECTIONS[name].model_fields)


def test_all_our_plugins_are_looked_at():
    assert set(SECTIONS) >= OUR_PLUGINS


def test_a_declaration_of_what_is_no_field_is_refused_by_name():
    class Wrong(Section):
        when_changed: ClassVar = {"sped": Change.free()}
        speed: int = 1
        """Speed."""

    plugin = type("Plugin", (), {"settings_type": Wrong})
    with pytest.raises(PluginError) as caught:
        vocabulary.build_vocabulary(TrainingArguments, (("wrong", plugin),))
    assert str(caught.value) == "plugin 'wrong': when_changed stands for no field, got 'sped'. Correct it."


# One field --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "name"), [field for field in FIELDS if field not in SECRET])
def test_a_changed_field_alone_is_what_its_declaration_says(section, name):
    told = found(saved_with([(section, name)]), *HARSH)
    kind = declared(section, name).kind
    assert {name: one.kind for name, one in told.items()} == {shown_name(section, name): kind}


@pytest.mark.parametrize(("section", "name"), [field for field in FIELDS if declared(*field).when is not None])
def test_a_field_that_is_refused_under_a_condition_is_said_without_it(section, name):
    saved = saved_with([(section, name)], plain := ARGS.replace(train_sampling_strategy="random"))
    told = found(saved, *MILD, args=plain)
    assert {name: one.kind for name, one in told.items()} == {shown_name(section, name): "said"}


def test_a_refused_change_names_both_values_their_sources_and_what_to_do(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("seed: 7\n", encoding="utf-8")
    saved = saved_settings(TrainingArguments.from_file(file))
    args = TrainingArguments.from_command_line(["--seed", "8"])
    (change,) = found(saved, *MILD, args=args).values()
    assert change.kind == "refused"
    assert change.problem == (
        f"seed: the rest of the run would draw other random numbers; the run of the checkpoint had 7 (from {file}), "
        f"got 8 (from command line). Go back to 7, or start anew from its weights."
    )


def test_a_said_change_is_one_line_with_both_values():
    saved = saved_settings(TrainingArguments("runs", save_total_limit=2, learning_rate=1e-3))
    told = found(saved, *MILD, args=TrainingArguments("runs", save_total_limit=5, learning_rate=1e-4))
    assert [change.line for change in told.values()] == [
        "learning_rate: 0.0001 (from keyword), was 0.001; the run goes on with that of its checkpoint, start anew to "
        "change it.",
        "save_total_limit: 5 (from keyword), was 2.",
    ]
    assert told["save_total_limit"].record == {"name": "save_total_limit", "before": 2, "now": 5, "source": "keyword"}


# The length of a run ----------------------------------------------------------------------------------------------


def length(counters, max_steps, before=3.0, now=5.0):
    told = found(
        saved_settings(TrainingArguments("runs", num_train_epochs=before)),
        {**MILD[0], **counters},
        max_steps,
        args=TrainingArguments("runs", num_train_epochs=now),
    )
    return [(change.kind, change.note) for change in told.values()]


@pytest.mark.parametrize(
    ("counters", "max_steps", "expected"),
    [
        ({}, 20, []),
        ({}, 30, [("said", "the run ends at update 30 instead of 20, and the schedule with it")]),
        ({"global_step": 20}, 30, [("said", "the run ends at update 30 instead of 20, and the schedule with it")]),
        ({}, 12, [("said", "the run ends at update 12 instead of 20, and the schedule with it")]),
        ({}, 10, [("said", "all 10 updates are done, and the run ends")]),
        ({}, 9, [("refused", "10 updates are done, and the run would have 9")]),
        ({"stopped_by": {"by": "patience", "why": ""}}, 30, [("said", "patience ended the run, which stays ended")]),
        ({"stopped_by": {"by": "patience", "why": ""}}, 9, [("said", "patience ended the run, which stays ended")]),
    ],
)
def test_another_length_is_said_and_one_that_is_over_is_refused(counters, max_steps, expected):
    assert length(counters, max_steps) == expected


def test_batches_that_would_end_an_open_run_unseen_are_refused_and_those_of_a_finished_one_are_said():
    saved = saved_settings(TrainingArguments("runs"))
    args = TrainingArguments("runs", gradient_accumulation_steps=4)
    kinds = [
        found(saved, {**MILD[0], "global_step": done}, 5, args=args)["gradient_accumulation_steps"].kind
        for done in (4, 10, 20)
    ]
    assert kinds == ["said", "refused", "said"]


# Spelled differently ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"evaluation_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        ({"save_steps": 0.1}, {"save_steps": 2}),
        ({"eval_strategy": "steps", "eval_steps": 0.25}, {"eval_strategy": "steps", "eval_steps": 5}),
        ({"eval_strategy": "epoch", "eval_steps": 3}, {"eval_strategy": "epoch"}),
        ({"save_strategy": "epoch", "save_steps": 3}, {"save_strategy": "epoch"}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 2}),
        ({"data_seed": 42}, {}),
        ({"seed": 1, "data_seed": None}, {"seed": 1, "data_seed": 1}),
        (
            {"eval_strategy": "epoch", "metric_for_best_model": "eval_accuracy"},
            {"eval_strategy": "epoch", "metric_for_best_model": "accuracy"},
        ),
        ({"max_time": "90m"}, {"stop_at": {"max_time": 5400.0}}),
        ({"output_dir": "./runs"}, {"output_dir": "runs"}),
        ({"neftune_noise_alpha": 5}, {"neftune": {"noise_alpha": 5.0}}),
        ({"max_steps": 20}, {"num_train_epochs": 4.0}),
        ({"lr_scheduler_kwargs": '{"num_cycles": 2}'}, {"lr_scheduler_kwargs": {"num_cycles": 2}}),
    ],
    ids=str,
)
def test_what_comes_to_the_same_is_no_change(before, now):
    saved = saved_settings(TrainingArguments(**{"output_dir": "runs", **before}))
    told = found(saved, {**MILD[0], "best_metric": 0.5}, 20, args=TrainingArguments(**{"output_dir": "runs", **now}))
    assert [change.line for change in told.values() if change.kind != "free"] == []


def test_a_value_of_another_type_is_a_change_even_where_its_meaning_cannot_be_told():
    saved = saved_settings(TrainingArguments("runs", eval_strategy="steps", eval_steps=3))
    saved["values"]["eval_steps"] = ["of", "a", "later", "version"]
    told = found(saved, *MILD, args=TrainingArguments("runs", eval_strategy="steps", eval_steps=3))
    assert [change.line for change in told.values()] == [
        "eval_steps: 3 (from keyword), was ['of', 'a', 'later', 'version']."
    ]


# Plugins that come and go -----------------------------------------------------------------------------------------


def test_a_plugin_that_is_turned_on_or_off_is_said_unless_it_only_shows():
    on = TrainingArguments("runs", early_stopping_patience=2, eval_strategy="epoch")
    off = TrainingArguments("runs", eval_strategy="epoch", console=None)
    came = found(saved_settings(off), *MILD, args=on)
    went = found(saved_settings(on), *MILD, args=off)
    assert {name: (change.kind, change.note) for name, change in came.items()} == {
        "early_stopping": ("said", "the plugin was off"),
        "console": ("free", "the plugin was off"),
    }
    assert {name: (change.kind, change.note) for name, change in went.items()} == {
        "early_stopping": ("said", "the plugin is off now"),
        "console": ("free", "the plugin is off now"),
    }


def test_what_nothing_knows_any_more_is_said_and_what_was_off_is_not():
    saved = saved_settings(TrainingArguments("runs"))
    saved["values"] |= {"patience": {"evaluations": 3}, "gone_and_off": None, "an_old_option": 7}
    saved["values"]["checkpointing"]["compression"] = "zip"
    lines = [change.line for change in found(saved, *MILD, args=TrainingArguments("runs")).values()]
    assert lines == [
        "checkpointing.compression: None, was 'zip'; nothing that is installed knows it.",
        "patience: None, was {'evaluations': 3}; nothing that is installed knows it.",
        "an_old_option: None, was 7; nothing that is installed knows it.",
    ]


def test_an_option_that_the_checkpoint_does_not_know_is_said_where_somebody_gave_it():
    saved = saved_settings(TrainingArguments("runs"))
    for name in ("seed", "nan_policy", "do_train"):
        del saved["values"][name]
    args = TrainingArguments("runs", seed=7, do_train=True)
    assert [(change.kind, change.line) for change in found(saved, *MILD, args=args).values()] == [
        ("said", "seed: 7 (from keyword), was None; the run of the checkpoint had no such option.")
    ]


def test_a_field_of_a_subclass_is_said_unless_it_is_declared():
    class Mine(TrainingArguments):
        when_changed: ClassVar = {"label": Change.free(), "folds": Change.refused("the folds are fixed")}
        label: str = "a"
        folds: int = 5
        depth: int = 3

    saved = saved_settings(Mine("runs"))
    told = found(saved, *MILD, args=Mine("runs", label="b", folds=4, depth=2, seed=42))
    assert {name: change.kind for name, change in told.items()} == {
        "label": "free",
        "folds": "refused",
        "depth": "said",
    }


# Together ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(changed=st.sets(st.sampled_from([field for field in FIELDS if field not in SECRET])), harsh=st.booleans())
def test_no_change_is_lost_or_invented_among_others(changed, harsh):
    # what warms up follows from two fields, whose changes may come to the same
    changed -= {("", "warmup_ratio"), ("", "eval_strategy"), ("checkpointing", "strategy"), ("", "seed")}
    told = differences(ARGS, saved_with(changed), *(HARSH if harsh else MILD))
    assert sorted(change.name for change in told) == sorted(shown_name(*field) for field in changed)


def test_a_secret_is_neither_kept_nor_compared():
    one, other = (TrainingArguments("runs", hub_token="hf_" + letter * 34) for letter in "ab")
    saved = saved_settings(one)
    assert "aaaa" not in str(saved)
    assert found(saved, *MILD, args=other) == {}


@pytest.mark.parametrize(
    "saved",
    [7, {}, {"values": [], "sources": {}}, {"values": {}}, {"values": {"logging": [1]}, "sources": {}}],
    ids=str,
)
def test_what_is_no_settings_is_refused(saved):
    with pytest.raises(CheckpointError, match="settings: those in the checkpoint are not what a save writes"):
        differences(ARGS, saved, *MILD)


def test_a_long_value_is_shortened():
    saved = saved_settings(TrainingArguments("runs", label_names=["x" * 500]))
    (change,) = found(saved, *MILD, args=TrainingArguments("runs")).values()
    assert len(change.line) < 200


def test_the_comparison_imports_no_torch():
    with patch.dict("sys.modules", {"torch": None}):
        assert comparison.differences(ARGS, saved_settings(ARGS), *MILD) == []
