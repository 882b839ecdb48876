import sys

import pytest

from trainer_core.errors import PluginError
from trainer_core.settings.arguments import TrainingArguments
from trainer_core.settings.discovery import Installed, installed_names, installed_plugins, inventory

OURS = sorted(installed_names())

PLUGIN = "from trainer_core import Section\nclass S(Section):\n    {body}\nclass P:\n    settings_type = S\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution with entry points on the path, as pip would."""
    monkeypatch.setenv("TRAINER_CORE_BLOCK_PLUGINS", ",".join(OURS))
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def put(distribution, entry_points, source=None, module=None):
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
        info.joinpath("entry_points.txt").write_text(f"[trainer_core]\n{lines}")
        if source is not None:
            folder.joinpath(f"{module or distribution}.py").write_text(source)
            made.append(module or distribution)
        monkeypatch.syspath_prepend(folder)

    yield put
    for module in made:
        sys.modules.pop(module, None)


def test_plugins_come_in_the_order_of_their_names(install):
    install("dist_b", {"zeta": "dist_b:P", "alpha": "dist_b:P"}, PLUGIN.format(body="pass"))
    assert [(name, kind.__name__) for name, kind in installed_plugins().items()] == [("alpha", "P"), ("zeta", "P")]


def test_a_broken_plugin_is_told_by_name_with_the_way_to_block_it(install):
    install("dist_broken", {"rotten": "dist_broken:P"}, "raise RuntimeError('worms')")
    with pytest.raises(PluginError) as caught:
        installed_plugins()
    assert str(caught.value) == (
        "plugin 'rotten' (dist_broken:P of dist_broken 1.0): cannot be loaded (RuntimeError: worms). Repair or "
        "uninstall it, or block it with block_plugins=['rotten'] or the environment variable "
        "TRAINER_CORE_BLOCK_PLUGINS=rotten."
    )


def test_the_inventory_has_the_blocked_and_the_broken_too(install):
    install("dist_whole", {"alpha": "dist_whole:P"}, PLUGIN.format(body="pass"))
    install("dist_broken", {"rotten": "dist_broken:P"}, "raise RuntimeError('worms')")
    found = {one.name: one for one in inventory(["rotten"])}
    assert found["alpha"] == Installed("alpha", "dist_whole 1.0", installed_plugins(["rotten"])["alpha"])
    assert found["rotten"] == Installed("rotten", "dist_broken 1.0", None, "blocked")
    assert found["logging"].problem == "blocked"
    (broken,) = [one for one in inventory() if one.problem.startswith("broken")]
    assert (broken.name, broken.plugin) == ("rotten", None)
    assert "cannot be loaded (RuntimeError: worms)" in broken.problem


def test_a_blocked_plugin_is_not_imported(install, monkeypatch):
    install("dist_blocked", {"rotten": "dist_blocked:P"}, "raise RuntimeError('worms')")
    assert installed_plugins(["rotten"]) == {}
    assert TrainingArguments(block_plugins=["rotten"]).sections == {}
    assert TrainingArguments(core={"block_plugins": ["rotten"]}).sections == {}
    monkeypatch.setenv("TRAINER_CORE_BLOCK_PLUGINS", ",".join([" rotten ", *OURS]))
    assert installed_plugins() == {}
    assert "dist_blocked" not in sys.modules


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("P = 3", "is no class, got 3"),
        ("class P: pass", "needs a class attribute settings_type, a Section, got None"),
        ("class P: settings_type = int", "needs a class attribute settings_type, a Section, got <class 'int'>"),
    ],
)
def test_an_entry_point_that_is_no_plugin_is_refused(install, source, told):
    install("dist_odd", {"odd": "dist_odd:P"}, source)
    with pytest.raises(PluginError) as caught:
        installed_plugins()
    assert told in str(caught.value)


def test_two_plugins_of_one_name_are_refused(install):
    install("dist_one", {"same": "dist_one:P"}, PLUGIN.format(body="pass"))
    install("dist_two", {"same": "dist_two:P"}, PLUGIN.format(body="pass"))
    with pytest.raises(PluginError, match=r"plugin 'same': is there twice, got dist_\w+:P of dist_\w+ 1.0 and dist_"):
        installed_plugins()


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("mine", 'x: int = 1\n    flat = {"learning_rate": "x"}', "its option 'learning_rate' is taken by the core"),
        ("mine", 'x: int = 1\n    flat = {"y": "z"}', "flat name 'y' stands for no field, got 'z'"),
        ("mine", 'x: int = 1\n    aliases = {"y": "z"}', "alias 'y' stands for no flat name, got 'z'"),
        ("optimizer", "pass", "its option 'optimizer' is taken by the core"),
        ("replace", "pass", "has the name of an attribute of TrainingArguments"),
    ],
)
def test_a_plugin_whose_names_collide_is_refused(install, name, body, told):
    install("dist_clash", {name: "dist_clash:P"}, PLUGIN.format(body=body))
    with pytest.raises(PluginError) as caught:
        TrainingArguments()
    assert told in str(caught.value)


def test_a_blocked_name_that_nearly_is_a_plugin_is_a_mistake(install):
    install("dist_near", {"beacon": "dist_near:P"}, PLUGIN.format(body="pass"))
    with pytest.raises(ValueError, match=r"block_plugins: no plugin has this name, got 'becon'. Did you mean 'beacon'"):
        TrainingArguments(block_plugins=["becon"])
    assert TrainingArguments(block_plugins=["quux"]).block_plugins == ["quux"]
