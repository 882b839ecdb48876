import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_core.errors import SettingsError
from trainer_core.settings import discovery
from trainer_core.settings.arguments import TrainingArguments

MODULE = "plugins_of_test_sources"
SOURCE = '''
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from trainer_core.settings.section import Interval, Section


class Rows(Section):
    """Writes rows."""

    flat = {"row_steps": "steps"}
    on_by_default = True
    steps: Interval = 500
    """Steps between two rows."""
    names: list[str] = []
    loud: bool = True


class Stopping(Section):
    """Stops early."""

    patience: int = 1
    """Evaluations without improvement."""


class Push(Section):
    """Pushes."""

    switch = "push"


class Inner(BaseModel):
    depth: int = 0


class Bell(Section):
    """Rings."""

    switch = "bell"
    tone: Literal["high", "low"] | Path
    inner: Inner = Inner()


class rows: settings_type = Rows
class stopping: settings_type = Stopping
class pushing: settings_type = Push
class bell: settings_type = Bell
'''


def strangers_and_three():
    """Gives the entry points of the plugins above, and of three of ours: others are as if they were not installed."""
    points = entry_points(group="trainer_core")
    ours = ("logging", "checkpointing", "console")
    found = [point for point in points if point.name in ours or point.dist.name == "strangers"]
    return tuple(sorted(found, key=lambda point: point.name))


@pytest.fixture(scope="module", autouse=True)
def _distribution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distribution")
    info = folder / "strangers-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    plugins = "".join(f"{name} = {MODULE}:{name}\n" for name in ("rows", "stopping", "pushing", "bell"))
    info.joinpath("entry_points.txt").write_text(f"[trainer_core]\n{plugins}")
    folder.joinpath(f"{MODULE}.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINER_CORE_BLOCK_PLUGINS", "logging,checkpointing,console")
        patch.syspath_prepend(folder)
        patch.setattr(discovery, "_entry_points", lambda path: strangers_and_three())
        yield
    sys.modules.pop(MODULE, None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistakes(make, *values, **options):
    with pytest.raises(SettingsError) as caught:
        make(*values, **options)
    return caught.value.problems


def line(*argv, **options):
    return TrainingArguments.from_command_line(argv, **options)


# --- files


FILES = {
    "train.yaml": "learning_rate: 1e-3\neval_strategy: no\nprecision:\n  bf16: true\nrows:\n  steps: 10\n",
    "train.toml": 'learning_rate = 1e-3\neval_strategy = "no"\n[precision]\nbf16 = true\n[rows]\nsteps = 10\n',
    "train.json": '{"learning_rate": 1e-3, "eval_strategy": "no", "precision": {"bf16": true}, "row_steps": 10}',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_mixes_flat_names_groups_and_sections(folder, name):
    folder.joinpath(name).write_text(FILES[name])
    args = TrainingArguments.from_file(name)
    assert args == TrainingArguments(learning_rate=1e-3, bf16=True, row_steps=10)
    assert {args.sources[option] for option in ("learning_rate", "bf16", "row_steps")} == {name}


def test_a_later_file_and_keywords_win(folder):
    folder.joinpath("a.yaml").write_text("seed: 1\nmax_steps: 5\nrows: {steps: 3, loud: false}")
    folder.joinpath("b.toml").write_text("seed = 2\nrows = {steps = 4}")
    args = TrainingArguments.from_file("a.yaml", Path("b.toml"), max_steps=6)
    assert (args.seed, args.max_steps, args.rows.steps, args.rows.loud) == (2, 6, 4, False)
    assert [args.sources[name] for name in ("seed", "max_steps", "row_steps", "rows.loud")] == [
        "b.toml",
        "keyword",
        "b.toml",
        "a.yaml",
    ]


def test_what_a_file_sets_for_a_plugin_that_keywords_turn_off_is_dropped(folder):
    folder.joinpath("a.yaml").write_text("row_steps: 3")
    assert TrainingArguments.from_file("a.yaml", rows=None).rows is None
    folder.joinpath("b.yaml").write_text("rows: null")
    assert TrainingArguments.from_file("b.yaml", row_steps=3).rows.steps == 3


def test_mistakes_of_files_name_the_file(folder):
    folder.joinpath("a.yaml").write_text("learning_rate: '5'\nlerning_rate: 1\nno: 1\nlabel_names: a")
    assert mistakes(TrainingArguments.from_file, "a.yaml", seed=-1) == [
        "lerning_rate: is not an option, got 1 (from a.yaml). Did you mean 'learning_rate'?",
        "False: is not an option, got 1 (from a.yaml). Look at `--help` for all options.",
        "seed: must be at least 0, got -1 (from keyword). Use 0 or more.",
        "learning_rate: must be a number, got '5' (from a.yaml). Write 5 without quotes.",
        "label_names: must be a list, got 'a' (from a.yaml). Put it in square brackets.",
    ]


def test_a_file_that_cannot_be_read_is_told_with_all_other_mistakes(folder):
    folder.joinpath("a.yaml").write_text("{")
    folder.joinpath("b.json").write_text("[[1, 2]]")
    folder.joinpath("c.ini").write_text("")
    told = mistakes(TrainingArguments.from_file, "a.yaml", "b.json", "c.ini", "d.toml", seed=-1)
    assert told[1] == "b.json: cannot be read (TypeError: it holds a list, no mapping of options). Correct the file."
    assert [text.split(" (")[0].split(",")[0] for text in told] == [
        "a.yaml: cannot be read",
        "b.json: cannot be read",
        "c.ini: is no settings file",
        "d.toml: is no file. Correct the path of the settings file.",
        "seed: must be at least 0",
    ]


def test_an_empty_file_says_nothing(folder):
    folder.joinpath("a.yaml").write_text("")
    assert TrainingArguments.from_file("a.yaml") == TrainingArguments()


options = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(0, 1),
        "seed": st.integers(0, 2**32 - 1),
        "eval_strategy": st.sampled_from(["no", "epoch"]),
        "label_names": st.lists(st.sampled_from(["a", "no", "1e3", " é,"]), max_size=3),
        "max_grad_norm": st.none() | st.floats(0, 10),
        "rows": st.none() | st.fixed_dictionaries({"steps": st.integers(1, 9)}),
    },
)
quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)


@quick
@given(options)
def test_settings_survive_files(tmp_path, values):
    args = TrainingArguments(**values)
    tmp_path.joinpath("a.json").write_text(json.dumps(args.to_dict()))
    tmp_path.joinpath("a.yaml").write_text(yaml.safe_dump(args.to_dict()))
    assert TrainingArguments.from_file(tmp_path / "a.json") == args == TrainingArguments.from_file(tmp_path / "a.yaml")


# --- environment


def test_the_environment_is_read_as_text(monkeypatch):
    for name, text in {
        "LEARNING_RATE": "1e-3",
        "BF16": "yes",
        "MAX_GRAD_NORM": "None",
        "LABEL_NAMES": "a, b",
        "LR_SCHEDULER_KWARGS": '{"num_cycles": 2}',
        "ROWS__NAMES": '["x"]',
        "STOPPING": "true",
        "OPTIMIZER__WEIGHT_DECAY": "1",
        "OPTIM_ARGS": "8",
    }.items():
        monkeypatch.setenv(f"TRAINER_CORE_{name}", text)
    args = TrainingArguments()
    assert args == TrainingArguments(
        learning_rate=1e-3,
        bf16=True,
        max_grad_norm=None,
        label_names=["a", "b"],
        lr_scheduler_kwargs={"num_cycles": 2},
        rows={"names": ["x"]},
        stopping=True,
        weight_decay=1.0,
        optim_args="8",
    )
    assert args.sources["rows.names"] == "environment TRAINER_CORE_ROWS__NAMES"


def test_a_group_or_a_section_can_be_json_in_the_environment(monkeypatch):
    monkeypatch.setenv("TRAINER_CORE_BELL", '{"tone": "a/b", "inner": {"depth": 2}}')
    monkeypatch.setenv("TRAINER_CORE_OPTIMIZER", '{"learning_rate": 1}')
    args = TrainingArguments()
    assert (args.bell.tone, args.bell.inner.depth, args.learning_rate) == (Path("a/b"), 2, 1.0)


def test_text_that_is_no_section_is_a_mistake(monkeypatch):
    monkeypatch.setenv("TRAINER_CORE_ROWS", "often")
    assert mistakes(TrainingArguments) == [
        "rows: must be a mapping, an instance of Rows, True or None, got 'often' (from environment TRAINER_CORE_ROWS). "
        "None turns the plugin off."
    ]


def test_an_unknown_variable_and_a_wrong_value_are_mistakes(monkeypatch):
    monkeypatch.setenv("TRAINER_CORE_LERNING_RATE", "1")
    monkeypatch.setenv("TRAINER_CORE_SEED", "many")
    assert mistakes(TrainingArguments) == [
        "lerning_rate: is not an option, got '1' (from environment TRAINER_CORE_LERNING_RATE). "
        "Did you mean 'learning_rate'?",
        "seed: must be a whole number, got 'many' (from environment TRAINER_CORE_SEED). "
        "Give a whole number, for example 42.",
    ]


# --- command line


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["--learning_rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--learning-rate=1e-3"], {"learning_rate": 1e-3}),
        (["--max_steps", "-1"], {}),
        (["--bf16"], {"bf16": True}),
        (["--bf16", "false"], {}),
        (["--no-remove-unused-columns"], {"remove_unused_columns": False}),
        (["--no_remove_unused_columns"], {"remove_unused_columns": False}),
        (["--tf32", "--seed", "3"], {"tf32": True, "seed": 3}),
        (["--label_names", "a", "b"], {"label_names": ["a", "b"]}),
        (["--label-names", "a"], {"label_names": ["a"]}),
        (["--label_names", "none"], {"label_names": None}),
        (["--lr_scheduler_kwargs", '{"power": 2}'], {"lr_scheduler_kwargs": {"power": 2}}),
        (["--max_grad_norm", "null"], {"max_grad_norm": None}),
        (["--warmup_steps", "0.1"], {"warmup_steps": 0.1}),
        (["--evaluation_strategy", "epoch"], {"eval_strategy": "epoch"}),
        (["--no_cuda"], {"use_cpu": True}),
        (["--group_by_length"], {"group_by_length": True}),
        (["--optimizer.weight_decay", "1"], {"weight_decay": 1.0}),
        (["--row_steps", "5"], {"row_steps": 5}),
        (["--rows.steps", "5"], {"row_steps": 5}),
        (["--rows.names", "a", "b", "--no-rows.loud"], {"rows": {"names": ["a", "b"], "loud": False}}),
        (["--stopping.patience", "3"], {"stopping": {"patience": 3}}),
        (["--stopping"], {"stopping": True}),
        (["--no-rows"], {"rows": None}),
        (["--rows", "none"], {"rows": None}),
        (["--push"], {"push": True}),
        (["--output_dir", "a"], {"output_dir": "a"}),
        (["--bell.tone", "high", "--bell.inner", '{"depth": 2}'], {"bell": {"tone": "high", "inner": {"depth": 2}}}),
    ],
)
def test_a_flag_says_what_a_keyword_says(argv, options):
    args = line(*argv)
    assert args == TrainingArguments(**options)
    assert set(args.sources.values()) - {"follows from eval_strategy"} == {"default", "command line"}


def test_all_mistakes_of_a_command_line_are_told_at_once():
    argv = "--lerning-rate 3 --learning_rate -1e-3 --fp16_opt_level O1 stray --seed --bf16 maybe --rows.step 3"
    assert mistakes(line, *argv.split()) == [
        "seed: needs a value on the command line. Write --seed VALUE.",
        "command line: belongs to no option, got 'stray'. Write --option VALUE.",
        "lerning_rate: is not an option, got '3' (from command line). Did you mean 'learning_rate'?",
        "fp16_opt_level: belonged to Apex, which is gone, got 'O1' (from command line). Use fp16=True or bf16=True.",
        "rows.step: is not an option, got '3' (from command line). Did you mean 'steps'?",
        "learning_rate: must be at least 0, got -0.001 (from command line). Use 0 or more.",
        "bf16: must be true or false, got 'maybe' (from command line). Use True or False.",
    ]


def test_an_unknown_flag_keeps_its_value():
    assert mistakes(line, "--hub_strategy=end", "--lerning_rate", "--seed", "1") == [
        "hub_strategy: belongs to the plugin 'hub_push', which is not installed, got 'end' (from command line). "
        "Install it: pip install trainer-core-hub-push.",
        "lerning_rate: is not an option, got 'true' (from command line). Did you mean 'learning_rate'?",
    ]


def test_a_flag_that_takes_no_value_says_so():
    assert mistakes(line, "--no-bf16=3") == [
        "command line: argument --no-bf16/--no_bf16: ignored explicit argument '3'. See --help."
    ]


def test_a_line_may_name_files(folder):
    folder.joinpath("a.yaml").write_text("seed: 1\nmax_steps: 1")
    folder.joinpath("b.yaml").write_text("max_steps: 2")
    args = line("--config", "b.yaml", "--learning_rate", "1", file="a.yaml", seed=9, data_seed=8)
    assert (args.seed, args.max_steps, args.learning_rate, args.data_seed) == (1, 2, 1.0, 8)
    assert [args.sources[name] for name in ("seed", "max_steps", "learning_rate", "data_seed")] == [
        "a.yaml",
        "b.yaml",
        "command line",
        "keyword",
    ]


def test_the_line_is_the_process_s_own_by_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "3"])
    assert TrainingArguments.from_command_line().seed == 3


def test_help_shows_groups_and_plugins_with_docstrings_and_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        line("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    titles = ["core:", "optimizer:", "data:", "evaluation:", "precision:", "distributed:", "plugin pushing:"]
    titles += ["plugin rows: Writes rows. (on by default)", "plugin stopping: Stops early. (off by default)"]
    assert [shown.index(f" {title}") for title in titles] == sorted(shown.index(f" {title}") for title in titles)
    assert "--learning_rate float Highest learning rate of the schedule. (default: 5e-05)" in shown
    assert "--row_steps float Steps between two rows. (default: 500)" in shown
    assert "--stopping.patience int Evaluations without improvement. (default: 1)" in shown
    assert "--no-bf16" not in shown


def test_reading_a_line_needs_no_torch():
    program = (
        "import sys; from trainer_core import TrainingArguments as T; T.from_command_line(['--seed', '1']);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- precedence

LEVELS = ("default of the script", "file", "environment", "command line")


@quick
@given(st.dictionaries(st.sampled_from(LEVELS), st.integers(0, 99)))
def test_the_highest_source_wins(tmp_path, values):
    file = tmp_path / "a.yaml"
    file.write_text(f"seed: {values['file']}" if "file" in values else "")
    argv = ["--seed", str(values["command line"])] if "command line" in values else []
    defaults = {"seed": values[LEVELS[0]]} if LEVELS[0] in values else {}
    with pytest.MonkeyPatch.context() as patch:
        if "environment" in values:
            patch.setenv("TRAINER_CORE_SEED", str(values["environment"]))
        args = line(*argv, file=file, **defaults)
    names = dict(zip(LEVELS, ("keyword", str(file), "environment TRAINER_CORE_SEED", "command line"), strict=True))
    highest = next((level for level in reversed(LEVELS) if level in values), None)
    assert (args.seed, args.sources["seed"]) == (values.get(highest, 42), names.get(highest, "default"))
