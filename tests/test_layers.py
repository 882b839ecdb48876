"""Imports point down: the layers of the design, with every module that exists in one of them."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import trainer_core

ROOT = Path(__file__).parents[1]
CORE = ROOT / "trainer_core"
LAYERS = [
    # settings, state and the table; no torch
    "errors files phases state batching cadence settings plan",
    # the declaration of hooks; data and optimizer; what a step is made of
    "hookspecs data optim activations best collection guard loss memory meter metrics modes ordering process ranks"
    " buckets connections lifeline rendezvous verdicts watch whereabouts tally weights",
    # one update, one evaluation, the bus, the plan and the journal
    "step splitting criterion saves evaluate bus callbacks journal ownership planning rehearsal results snapshot"
    " summary plugin_states agreement boundary closing rescue watching",
    # what sees everything
    "trainer loop assembly preparation running variation",
    # what is built on the trainer
    "__main__ testing console",
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names.split()}
HINTS = {"settings.names"}
"""Modules that know which of our plugins brings an option, to say what to install."""


def modules_of(package):
    """Gives each module of a package's folder with its path; a package's own name stands for its __init__."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path, known):
    """Gives the modules among `known` that a file imports, anywhere but under TYPE_CHECKING."""
    found, waiting = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {node.module}
        waiting += ast.iter_child_nodes(node)
    return found & known if known else found


MODULES = modules_of(CORE)
IMPORTS = {name: imports_of(path, set(MODULES)) for name, path in MODULES.items() if name != "trainer_core"}
PLUGINS = {folder.name: folder for folder in sorted((ROOT / "plugins").glob("*/src/trainer_core_*"))}


def head(module):
    """Gives the part of a module's name that has a layer: a package has one for all of its modules."""
    return module.split(".")[1]


def test_every_module_has_a_layer_and_every_layer_names_modules_that_exist():
    assert {head(module) for module in IMPORTS} == set(LAYER_OF)


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_point_to_the_same_layer_or_a_lower_one(module):
    own = LAYER_OF[head(module)]
    upward = [other for other in IMPORTS[module] if other != "trainer_core" and LAYER_OF[head(other)] > own]
    assert upward == []


def test_no_module_of_the_core_imports_through_the_lazy_package():
    assert [module for module, imports in IMPORTS.items() if "trainer_core" in imports] == []


def test_there_is_no_cycle():
    assert list(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names it


@pytest.mark.parametrize("module", [module for module in IMPORTS if LAYER_OF[head(module)] == 0])
def test_the_lowest_layer_imports_no_torch(module):
    imported = {name.partition(".")[0] for name in imports_of(MODULES[module], set())}
    assert imported.isdisjoint({"torch", "accelerate", "numpy"})


def test_settings_are_read_without_torch():
    code = (
        "import sys; from trainer_core import TrainingArguments; "
        "from trainer_core.settings.discovery import installed_names; "
        "TrainingArguments(block_plugins=list(installed_names())); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def uses_of(path):
    """Gives what a file imports, and what it takes from `trainer_core`, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "trainer_core":
            yield f"trainer_core.{node.attr}"


@pytest.mark.parametrize("package", PLUGINS)
def test_a_plugin_imports_public_names_only_and_no_other_plugin(package):
    public = {"trainer_core", *(f"trainer_core.{name}" for name in trainer_core.__all__)}
    uses = {name for path in PLUGINS[package].rglob("*.py") for name in uses_of(path)}
    assert {name for name in uses if name.partition(".")[0] == "trainer_core"} - public == set()
    assert {name.partition(".")[0] for name in uses} & (PLUGINS.keys() - {package}) == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.removeprefix("trainer_core.") not in HINTS])
def test_the_core_names_no_plugin_distribution(module):
    source = MODULES[module].read_text(encoding="utf-8")
    spellings = {spelling for package in PLUGINS for spelling in (package, package.replace("_", "-"))}
    assert [spelling for spelling in spellings if spelling in source] == []
