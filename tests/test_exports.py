import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import trainer_core

CORE = Path(trainer_core.__file__).parent


def python(code):
    """Gives what a fresh interpreter prints, line by line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", trainer_core.__all__)
def test_every_public_name_is_importable_from_its_home(name):
    value = getattr(trainer_core, name)
    if name != "__version__":
        home = importlib.import_module(f"trainer_core.{trainer_core._HOMES[name]}")
        assert getattr(home, name) is value


def test_public_names_are_sorted_once_and_listed():
    assert trainer_core.__all__ == sorted(set(trainer_core.__all__))
    assert dir(trainer_core) == trainer_core.__all__


def test_a_type_checker_sees_the_names_that_are_importable():
    source = (CORE / "__init__.py").read_text(encoding="utf-8")
    lines = [line.split() for line in source.splitlines() if line.startswith("    from trainer_core.")]
    seen = {words[-1]: words[1].removeprefix("trainer_core.") for words in lines}
    assert seen == dict(trainer_core._HOMES)
    assert list(lines) == sorted(lines, key=lambda words: (words[1], kind(words[-1]), words[-1].lower()))


def kind(name):
    """Gives the place of a name among constants, classes and functions, which the linter sorts apart."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2


def test_every_error_is_public():
    errors = importlib.import_module("trainer_core.errors")
    kinds = [
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert [name for name in kinds if name not in trainer_core.__all__] == []


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'trainer_core' has no attribute 'Trianer'"):
        _ = trainer_core.Trianer


def offer(folder, name, value):
    info = folder / "bell_dist-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: bell-dist\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text(f"[trainer_core.names]\n{name} = {value}\n")


def test_a_distribution_offers_a_public_name(tmp_path):
    offer(tmp_path, "Bell", "bell_module:Bell")
    (tmp_path / "bell_module.py").write_text("class Bell: pass\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from trainer_core import Bell; print(Bell)"
    assert python(code) == ["<class 'bell_module.Bell'>"]


def test_a_name_of_a_broken_distribution_says_which_one_it_is(tmp_path):
    offer(tmp_path, "Bell", "bell_module:Bell")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import trainer_core\n"
        "try: trainer_core.Bell\n"
        "except trainer_core.PluginError as error: print(error)"
    )
    assert python(code) == [
        "Bell: the name bell_module:Bell cannot be loaded (ModuleNotFoundError: No module named 'bell_module'). "
        "Repair or uninstall its distribution."
    ]


def test_a_name_of_a_plugin_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **group: ())
    monkeypatch.delitem(vars(trainer_core), "BestRun", raising=False)
    with pytest.raises(AttributeError, match=r"'BestRun'. Install it: pip install trainer-core-tuning."):
        _ = trainer_core.BestRun


def test_importing_costs_few_modules_over_torch_and_never_dynamo():
    code = (
        "import sys, torch; before = set(sys.modules); import trainer_core; added = set(sys.modules) - before; "
        "print(len(added)); print('torch._dynamo' in sys.modules)"
    )
    added, has_dynamo = python(code)
    assert int(added) < 60
    assert has_dynamo == "False"


def test_importing_alone_imports_no_torch():
    assert python("import sys, trainer_core; print('torch' in sys.modules)") == ["False"]


RUN = """
import sys
from trainer_core.testing import run
trainer = run(max_steps=5, gradient_accumulation_steps=2)
print(trainer.state.global_step, [name for name in sys.modules if name.startswith("torch._dynamo")])
"""


def test_a_whole_run_never_imports_dynamo():
    assert python(RUN) == ["5 []"]
