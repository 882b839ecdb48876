import copy
import json
import logging
import pickle
import sys
from importlib.metadata import entry_points

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_core.errors import SettingsError, TrainerCoreError
from trainer_core.settings import discovery, names
from trainer_core.settings.arguments import TrainingArguments

MODULE = "plugins_of_test_arguments"
SOURCE = '''
from typing import Annotated, Literal
from pydantic import Field, SecretStr
from trainer_core.settings.section import Interval, Section


class Rows(Section):
    """Writes rows."""

    flat = {"logging_steps": "steps", "rows_strategy": "strategy"}
    on_by_default = True
    steps: Interval = 500
    """Steps between two rows."""
    strategy: Literal["no", "steps", "epoch"] = "steps"


class Stopping(Section):
    """Stops early."""

    flat = {"stopping_patience": "patience"}
    methods = {"get_patience": "patience_in"}
    patience: Annotated[int, Field(ge=1)] = 1
    threshold: float = 0.0

    def patience_in(self, args, factor=1):
        return args.eval_strategy, self.patience * factor

    def contradictions(self, args):
        if args.eval_strategy == "no":
            yield "stopping: needs evaluations, and there are none. Set eval_strategy."


class Noise(Section):
    """Adds noise."""

    flat = {"noise_alpha": "alpha", "noise_seed": "seed"}
    switch = "noise_alpha"
    alpha: Annotated[float, Field(gt=0)]
    seed: int = 0


class Push(Section):
    """Pushes."""

    flat = {"push_strategy": "strategy", "push_token": "token"}
    aliases = {"pusch_strategy": "push_strategy", "push_it": "push"}
    warn_aliases = frozenset({"pusch_strategy"})
    switch = "push"
    strategy: Literal["end", "every_save"] = "end"
    token: SecretStr | None = None


def plugin(section):
    return type(section.__name__ + "Plugin", (), {"settings_type": section})


rows, stopping, noise, pushing = map(plugin, (Rows, Stopping, Noise, Push))
'''


def strangers_and_three():
    """Gives the entry points of the plugins above, and of three of ours: others are as if they were not installed."""
    points = entry_points(group="trainer_core")
    ours = ("logging", "checkpointing", "console")
    found = [point for point in points if point.name in ours or point.dist.name == "strangers"]
    return tuple(sorted(found, key=lambda point: point.name))


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distribution")
    info = folder / "strangers-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    plugins = "".join(f"{name} = {MODULE}:{name}\n" for name in ("rows", "stopping", "noise", "pushing"))
    info.joinpath("entry_points.txt").write_text(f"[trainer_core]\n{plugins}")
    folder.joinpath(f"{MODULE}.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINER_CORE_BLOCK_PLUGINS", "logging,checkpointing,console")
        patch.syspath_prepend(folder)
        patch.setattr(discovery, "_entry_points", lambda path: strangers_and_three())
        yield folder
    sys.modules.pop(MODULE, None)


pytestmark = pytest.mark.usefixtures("distribution")


def mistakes(**options):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**options)
    return caught.value.problems


def test_defaults_are_the_documented_ones():
    args = TrainingArguments()
    assert (args.output_dir, args.learning_rate, args.optim) == ("trainer_output", 5e-5, "adamw_torch_fused")
    assert set(args.sources.values()) == {"default"}
    assert list(args.sections) == ["rows"]


def test_output_dir_comes_first():
    assert TrainingArguments("runs/a") == TrainingArguments(output_dir="runs/a")


def test_all_mistakes_are_told_at_once():
    assert mistakes(
        learning_rate=-1.0, evaluation_stratgy="no", stopping_patience=0, fp16_opt_level="O1", rows={"step": 1}
    ) == [
        "evaluation_stratgy: is not an option, got 'no' (from keyword). Did you mean 'evaluation_strategy'?",
        "fp16_opt_level: belonged to Apex, which is gone, got 'O1' (from keyword). Use fp16=True or bf16=True.",
        "rows.step: is not an option, got 1 (from keyword). Did you mean 'steps'?",
        "learning_rate: must be at least 0, got -1.0 (from keyword). Use 0 or more.",
        "stopping_patience: must be at least 1, got 0 (from keyword). Use 1 or more.",
    ]


def test_contradictions_are_told_of_core_and_sections_together():
    assert mistakes(stopping_patience=2, bf16=True, fp16=True) == [
        "fp16: contradicts bf16=True, got True (from keyword). Keep one of the two.",
        "stopping: needs evaluations, and there are none. Set eval_strategy.",
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("logging_step", "is not an option, got 1 (from keyword). Did you mean 'logging_steps'?"),
        (
            "neftune_noise_alpha",
            "belongs to the plugin 'neftune', which is not installed, got 1 (from keyword). "
            "Install it: pip install trainer-core-neftune.",
        ),
        (
            "hub_push",
            "belongs to the plugin 'hub_push', which is not installed, got 1 (from keyword). "
            "Install it: pip install trainer-core-hub-push.",
        ),
        (
            "tuning",
            "belongs to the plugin 'tuning', which is not installed, got 1 (from keyword). "
            "Install it: pip install trainer-core-tuning.",
        ),
        ("hub_stratgy", "is not an option, got 1 (from keyword). Did you mean 'hub_strategy'?"),
        ("callback", "is an argument of Trainer, got 1 (from keyword). Pass it as Trainer(callbacks=...)."),
        ("qqqqq", "is not an option, got 1 (from keyword). Look at `--help` for all options."),
    ],
)
def test_an_unknown_name_says_what_was_meant_or_what_to_install(name, told):
    assert mistakes(**{name: 1}) == [f"{name}: {told}"]


def test_an_option_that_an_installed_plugin_lacks_says_so(monkeypatch):
    monkeypatch.setitem(names.PLUGIN_OF, "old_option", "rows")
    assert mistakes(old_option=1) == [
        "old_option: is not offered by the plugin 'rows' as it is installed, got 1 (from keyword). "
        "Leave it out, or upgrade the plugin."
    ]


def test_an_option_of_a_blocked_plugin_says_so():
    assert mistakes(block_plugins=["noise"], noise=True) == [
        "noise: belongs to the plugin 'noise', which is blocked, got True (from keyword). Take it out of block_plugins."
    ]


def test_two_spellings_must_agree():
    assert TrainingArguments(eval_strategy="epoch", evaluation_strategy="epoch").eval_strategy == "epoch"
    assert mistakes(eval_strategy="epoch", evaluation_strategy="no") == [
        "evaluation_strategy: is given as eval_strategy='epoch' as well, got 'no' (from keyword). "
        "They are one option: keep eval_strategy or evaluation_strategy."
    ]
    assert mistakes(optimizer={"learning_rate": 1.0}, learning_rate=2.0)[0].startswith(
        "learning_rate: is given as optimizer.learning_rate=1.0 as well, got 2.0"
    )
    assert mistakes(rows={"steps": 1}, logging_steps=2)[0].startswith("logging_steps: is given as rows.steps=1 as well")
    assert mistakes(group_by_length=True, train_sampling_strategy="random") == [
        "train_sampling_strategy: is given as group_by_length=True as well, got 'random' (from keyword). "
        "They are one option: keep group_by_length or train_sampling_strategy."
    ]


def test_a_group_of_the_core_can_be_nested():
    args = TrainingArguments(optimizer={"learning_rate": 1e-3}, evaluation={"evaluation_strategy": "epoch"})
    assert args == TrainingArguments(learning_rate=1e-3, eval_strategy="epoch")


def test_mistakes_in_a_group_name_the_way_to_them():
    assert mistakes(optimizer={"lerning_rate": 1, "bf16": True}, data=3, precision={"fp16_opt_level": "O1"}) == [
        "optimizer.lerning_rate: is not an option of this group, got 1 (from keyword). Did you mean 'learning_rate'?",
        "optimizer.bf16: is in the wrong group, got True (from keyword). Move it to precision.",
        "data: must be a mapping of options, got 3 (from keyword). "
        "data is a group: give data={...} or each option by itself.",
        "fp16_opt_level: belonged to Apex, which is gone, got 'O1' (from keyword). Use fp16=True or bf16=True.",
    ]


def test_flat_and_nested_are_two_spellings_of_a_section():
    flat = TrainingArguments(logging_steps=10)
    section = type(flat.rows)
    for options in ({"steps": 10}, section(steps=10), {"logging_steps": 10}):
        assert TrainingArguments(rows=options) == flat
    assert (flat.rows.steps, flat.logging_steps, flat.section("rows").steps) == (10, 10, 10)
    assert {name: flat.sources[name] for name in ("rows", "rows.steps", "logging_steps", "rows.strategy")} == {
        "rows": "default",
        "rows.steps": "keyword",
        "logging_steps": "keyword",
        "rows.strategy": "default",
    }


@pytest.mark.parametrize("off", [None, False])
def test_a_section_that_is_on_by_default_can_be_turned_off(off):
    args = TrainingArguments(rows=off)
    assert (args.rows, args.logging_steps, dict(args.sections)) == (None, None, {})
    assert args.sources["rows"] == "keyword"


@pytest.mark.parametrize("on", [True, {}, {"patience": 1}])
def test_a_section_that_is_off_by_default_can_be_turned_on(on):
    args = TrainingArguments(eval_strategy="epoch", stopping=on)
    assert args.stopping_patience == 1
    assert TrainingArguments().stopping is None


def test_a_section_of_a_wrong_kind_is_a_mistake():
    assert mistakes(rows=3) == [
        "rows: must be a mapping, an instance of Rows, True or None, got 3 (from keyword). None turns the plugin off."
    ]


def test_options_of_a_section_that_is_off_are_mistakes():
    remedy = "Set rows, or leave it out."
    assert mistakes(rows=None, logging_steps=3) == [
        f"logging_steps: belongs to 'rows', and rows=None turns it off, got 3 (from keyword). {remedy}"
    ]
    assert mistakes(noise_seed=3) == [
        "noise_seed: belongs to 'noise', and it is off by default, got 3 (from keyword). "
        "Set noise_alpha, or leave it out."
    ]
    assert mistakes(push=False, push_strategy="end") == [
        "push_strategy: belongs to 'pushing', and push=False turns it off, got 'end' (from keyword). "
        "Set push, or leave it out."
    ]
    assert mistakes(rows=None, logging_steps=3, noise_alpha=None, noise={"alpha": 1.0})[0].startswith(
        "noise: contradicts noise_alpha=None"
    )


def test_a_section_gives_a_method_of_the_arguments():
    args = TrainingArguments(eval_strategy="epoch", stopping={"patience": 4})
    assert args.get_patience(factor=2) == ("epoch", 8)


def test_a_method_of_a_section_that_is_off_is_no_attribute():
    assert not hasattr(TrainingArguments(), "get_patience")


def test_a_switch_turns_its_section_on_and_off():
    assert (TrainingArguments().noise_alpha, TrainingArguments().push) == (None, False)
    assert TrainingArguments(noise_alpha=None).noise is None
    assert TrainingArguments(noise_alpha=5.0, noise_seed=1).noise.model_dump() == {"alpha": 5.0, "seed": 1}
    assert TrainingArguments(push=True).push_strategy == "end"
    assert TrainingArguments(push_it=True).push
    assert TrainingArguments(pushing={"strategy": "every_save"}).push
    assert mistakes(push=3) == ["push: must be true or false, got 3 (from keyword). Use True or False."]
    assert mistakes(noise=True) == ["noise.alpha: is needed, and nothing was given. Set it."]


def test_an_alias_of_a_section_can_warn(caplog):
    with caplog.at_level(logging.WARNING, "trainer_core.settings"):
        args = TrainingArguments(push=True, pusch_strategy="every_save")
        args.replace(seed=1)
    assert args.pusch_strategy == "every_save"
    assert caplog.messages == ["pusch_strategy: is read as push_strategy. Write push_strategy."]


def test_evaluation_steps_follow_the_logging_steps():
    args = TrainingArguments(eval_strategy="steps", logging_steps=7)
    assert (args.eval_steps, args.sources["eval_steps"]) == (7, "follows from logging_steps")
    assert args.replace(logging_steps=9).eval_steps == 9
    assert mistakes(eval_strategy="steps", rows=None)[0].startswith("eval_steps: is needed")


def test_settings_are_frozen():
    args = TrainingArguments()
    with pytest.raises(AttributeError) as caught:
        args.learning_rate = 1
    assert str(caught.value) == "learning_rate: settings are frozen, got 1. Use args.replace(learning_rate=1)."
    with pytest.raises(AttributeError, match=r"Use args.replace\(learning_rate=\.\.\.\)"):
        del args.learning_rate
    with pytest.raises(TypeError):
        args.sections["rows"] = None


def test_a_misspelt_attribute_says_what_was_meant(monkeypatch):
    with pytest.raises(AttributeError, match=r"^lerning_rate: is not an option. Did you mean 'learning_rate'\?$"):
        _ = TrainingArguments().lerning_rate
    monkeypatch.setattr("trainer_core.settings.vocabulary.installed_names", frozenset)
    with pytest.raises(AttributeError, match=r"'early_stopping', which is not installed. Install it: pip install"):
        _ = TrainingArguments().early_stopping_patience
    with pytest.raises(AttributeError, match=r"'stop_at', .* pip install trainer-core-early-stopping\."):
        _ = TrainingArguments(block_plugins=["stop_at"]).max_time
    assert not hasattr(TrainingArguments(), "_nothing")


def test_replace_keeps_values_and_their_sources(monkeypatch):
    monkeypatch.setenv("TRAINER_CORE_SEED", "7")
    args = TrainingArguments("a", noise_alpha=5.0, noise_seed=3, rows=None)
    monkeypatch.setenv("TRAINER_CORE_SEED", "8")
    other = args.replace(learning_rate=1.0)
    assert (other.seed, other.sources["seed"], other.noise.seed) == (7, "environment TRAINER_CORE_SEED", 3)
    assert other.replace(learning_rate=5e-5) == args
    assert args.replace(noise_alpha=None).noise is None
    assert args.replace(logging_steps=3).rows.steps == 3
    with pytest.raises(SettingsError):
        args.replace(learning_rate=-1.0)


FULL = {
    "learning_rate": 0.5,
    "label_names": ["a"],
    "noise_alpha": 5.0,
    "rows": None,
    "push": True,
    "eval_strategy": "epoch",
    "metric_for_best_model": "f1",
}


@pytest.mark.parametrize("options", [{}, FULL, {"logging_steps": 0.1}])
def test_settings_survive_copy_pickle_json_and_repr(options):
    args = TrainingArguments("out", **options)
    assert copy.copy(args) == copy.deepcopy(args) == pickle.loads(pickle.dumps(args)) == args
    assert dict(pickle.loads(pickle.dumps(args)).sources) == dict(args.sources)
    assert TrainingArguments(**json.loads(json.dumps(args.to_dict()))) == args
    assert eval(repr(args)) == args  # repr is meant to be pasted
    assert args != args.replace(seed=1)
    assert args != 3


def test_repr_shows_what_is_not_default():
    args = TrainingArguments("out", **FULL)
    assert repr(args) == (
        "TrainingArguments(output_dir='out', learning_rate=0.5, label_names=['a'], eval_strategy='epoch', "
        "metric_for_best_model='f1', noise={'alpha': 5.0}, pushing=True, rows=None)"
    )


def test_secrets_stay_out_of_texts():
    args = TrainingArguments(push=True, pushing={"token": "hush"})
    assert args.pushing.token.get_secret_value() == "hush"
    assert args.replace(seed=1).pushing.token.get_secret_value() == "hush"
    assert "hush" not in repr(args) + json.dumps(args.to_dict())
    assert mistakes(push=True, push_token=3) == [
        "push_token: must be text, got '***' (from keyword). Put it in quotes."
    ]


def test_what_has_no_form_in_json_is_a_mistake_like_others():
    (told,) = mistakes(label_names=[object])
    assert told.startswith("label_names[0]: must be text, got <class 'object'>")


def test_workers_may_live_on():
    assert TrainingArguments(dataloader_num_workers=1, dataloader_persistent_workers=True).dataloader_num_workers == 1


def test_errors_are_value_errors_of_ours_and_pickle():
    with pytest.raises(TrainerCoreError) as caught:
        TrainingArguments(seed=-1)
    assert isinstance(caught.value, ValueError)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_a_subclass_may_add_options():
    class Mine(TrainingArguments):
        """Mine."""

        beams: int = 1
        """Beams of a search."""

    assert Mine(beams=3).beams == 3
    assert Mine(Mine={"beams": 3}) == Mine(beams=3)
    assert Mine.from_command_line(["--beams", "4"]).beams == 4


def test_the_schema_covers_core_groups_aliases_and_plugins():
    schema = TrainingArguments.json_schema()
    properties = schema["properties"]
    assert properties["learning_rate"]["minimum"] == 0
    assert properties["optimizer"]["properties"]["learning_rate"] == properties["learning_rate"]
    assert properties["evaluation_strategy"] == properties["eval_strategy"]
    assert properties["rows"]["anyOf"][0]["properties"]["steps"]["description"] == "Steps between two rows."
    assert properties["logging_steps"]["default"] == 500
    assert properties["push"] == {"type": ["boolean", "null"]}
    assert not schema["additionalProperties"]


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.floats(0, 1),
            "seed": st.integers(0, 2**32 - 1),
            "max_steps": st.integers(1, 10**6),
            "bf16": st.booleans(),
            "label_names": st.none() | st.lists(st.sampled_from(["a", "no", ""]), max_size=3),
        },
    ),
    st.none() | st.fixed_dictionaries({}, optional={"steps": st.integers(1, 9) | st.floats(0.01, 0.9)}),
)
def test_flat_nested_and_written_settings_are_equal(core, rows):
    flat = TrainingArguments(**core, **({"rows": None} if rows is None else {"logging_steps": rows.get("steps", 500)}))
    groups = [("optimizer", ["learning_rate"]), ("core", ["seed", "max_steps"]), ("precision", ["bf16"])]
    nested = {group: {n: core[n] for n in names if n in core} for group, names in groups}
    assert TrainingArguments(**nested, data={n: core[n] for n in core if n == "label_names"}, rows=rows) == flat
    assert TrainingArguments(**flat.to_dict()) == flat == flat.replace()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("report_to", "none"),
        ("report_to", []),
        ("push_to_hub", False),
        ("neftune_noise_alpha", None),
        ("overwrite_output_dir", False),
    ],
)
def test_not_wanting_what_is_not_installed_is_no_mistake(name, value):
    args = TrainingArguments("x", **{name: value})
    assert not getattr(args, name)


# What the launcher says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_the_launchers_precision_is_taken_where_the_settings_say_none(monkeypatch, wanted):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", wanted)
    args = TrainingArguments()
    assert (args.bf16, args.fp16) == (wanted == "bf16", wanted == "fp16")
    assert args.sources[wanted] == "follows from environment ACCELERATE_MIXED_PRECISION"


@pytest.mark.parametrize("given", [{"bf16": False}, {"fp16": True}])
def test_settings_win_over_the_launchers_precision(monkeypatch, given):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = TrainingArguments(**given)
    assert (args.bf16, args.fp16) == (False, given.get("fp16", False))


def test_a_precision_that_is_not_offered_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert mistakes() == [
        "mixed_precision: is not offered, got 'fp8' (from environment ACCELERATE_MIXED_PRECISION). "
        "Launch with no, bf16 or fp16."
    ]
