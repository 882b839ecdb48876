import json
import os
import re
import subprocess
import sys

import pytest

from trainer_core.phases import exits_diagram, exits_table
from trainer_core.settings.discovery import installed_names
from trainer_core.testing import run

BROKEN = "raise RuntimeError('worms')"
WHOLE = """
from trainer_core import Section
class Settings(Section):
    flat = {"beacon_colour": "colour"}
    colour: str = "red"
    height: int
class Beacon:
    settings_type = Settings
    def __init__(self, settings): pass
    def on_step_end(self, trainer): pass
    def on_log(self): pass
"""


@pytest.fixture
def command(tmp_path):
    """Gives a function that runs `python -m trainer_core`, with the plugins of this test alone."""

    def call(*arguments):
        environment = {
            **os.environ,
            "TRAINER_CORE_BLOCK_PLUGINS": ",".join(installed_names()),
            "PYTHONPATH": str(tmp_path),
        }
        return subprocess.run(
            [sys.executable, "-m", "trainer_core", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**environment, "COLUMNS": "100"},
            cwd=tmp_path,
            check=False,
        )

    return call


@pytest.fixture
def install(tmp_path):
    """Puts a distribution with one plugin on the path of `command`."""

    def put(name, source, group="trainer_core", target="Beacon"):
        info = tmp_path / f"{name}_dist-1.0.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.0\n")
        info.joinpath("entry_points.txt").write_text(f"[{group}]\n{name} = {name}_module:{target}\n")
        tmp_path.joinpath(f"{name}_module.py").write_text(source)

    return put


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Gives the folder of a run of 24 updates with an evaluation after the 12th and the last."""
    folder = tmp_path_factory.mktemp("finished")
    run(output_dir=folder)
    return folder


def test_machine_prints_the_table_and_the_diagram(command):
    done = command("machine")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{exits_table()}\n\n```mermaid\n{exits_diagram()}\n```\n"


def test_machine_and_explain_import_neither_torch_nor_pydantic(finished):
    for arguments in (["machine"], ["explain", str(finished), "12"]):
        code = (
            "import sys; from trainer_core.__main__ import main; "
            f"main({arguments!r}); print([name for name in ('torch', 'pydantic', 'numpy') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_plugins_lists_name_distribution_settings_and_hooks(command, install):
    install("beacon", WHOLE)
    done = command("plugins")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:3] == [
        "beacon  (beacon-dist 1.0)",
        "    settings  colour='red' (beacon_colour), height",
        "    hooks     on_step_end, on_log",
    ]


def test_plugins_says_which_are_blocked_and_which_are_broken_and_why(command, install):
    install("beacon", WHOLE)
    install("rotten", BROKEN)
    done = command("plugins", "--block", "beacon")
    assert done.returncode == 1
    assert "beacon  (beacon-dist 1.0)  blocked\n" in done.stdout
    assert "rotten  (rotten-dist 1.0)  broken: plugin 'rotten'" in done.stdout
    assert "cannot be loaded (RuntimeError: worms)" in done.stdout


def test_schema_is_json_and_knows_the_options_of_plugins(command, install):
    install("beacon", WHOLE)
    done = command("schema")
    assert (done.returncode, done.stderr) == (0, "")
    properties = json.loads(done.stdout)["properties"]
    assert properties["beacon_colour"]["default"] == "red"
    assert {"beacon", "learning_rate"} <= properties.keys()


def test_schema_says_which_plugin_is_broken(command, install):
    install("rotten", BROKEN)
    done = command("schema")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("python -m trainer_core schema: plugin 'rotten' (rotten_module:Beacon of rotten-dist")


def test_explain_answers_from_the_journal(command, finished):
    done = command("explain", finished, 12)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Evaluated, asked by eval_strategy: the end of epoch 1." in done.stdout
    assert command("explain", finished / "journal.jsonl", 12).stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{run}", "25"], "step: the run came to update 24, got 25. Ask for one of 0 to 24."),
        (["{run}", "3", "--rank", "1"], "has no journal, got '{run}/journal-rank1.jsonl'. Name the folder"),
        (["nowhere", "3"], "output_dir: has no journal, got 'nowhere'. Name the folder that a run wrote into."),
        (["{run}", "-3"], "argument step: must be a whole number from 0, got '-3'"),
        (["{run}", "three"], "argument step: must be a whole number from 0, got 'three'"),
    ],
)
def test_explain_refuses_what_it_cannot_answer(command, finished, arguments, problem):
    done = command("explain", *(one.format(run=finished) for one in arguments))
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert problem.format(run=finished) in done.stderr


def test_explain_refuses_an_empty_journal(command, tmp_path):
    tmp_path.joinpath("journal.jsonl").touch()
    done = command("explain", tmp_path, 0)
    assert done.returncode == 1
    assert "journal.jsonl: has no entry. Name the journal of a run that began." in done.stderr


@pytest.mark.parametrize("arguments", [[], ["machinery"]])
def test_misuse_ends_with_the_usage(command, arguments):
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m trainer_core")


@pytest.mark.parametrize(
    "arguments", [["--help"], *([one, "--help"] for one in ("machine", "plugins", "schema", "explain"))]
)
def test_help_is_there_for_every_command(command, arguments):
    done = command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m trainer_core")


COMMAND = """
def greet(parser):
    \"\"\"Says hello.\"\"\"
    parser.add_argument("whom")
    return lambda given: print("hello", given.whom) or 3
"""


def test_a_distribution_offers_a_command(command, install):
    install("greet", COMMAND, "trainer_core.commands", "greet")
    done = command("greet", "world")
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello world\n", "")
    assert "Says hello." in command("greet", "--help").stdout
    assert re.search(r"^    greet +\(of greet-dist\)$", command("--help").stdout, flags=re.MULTILINE)


def test_a_broken_command_is_said_by_name_and_breaks_no_other(command, install):
    install("greet", BROKEN, "trainer_core.commands", "greet")
    done = command("greet", "world")
    assert (done.returncode, done.stderr) == (
        1,
        "python -m trainer_core: greet: the command greet_module:greet cannot be loaded (RuntimeError: worms). "
        "Repair or uninstall its distribution.\n",
    )
    assert command("machine").returncode == 0
