"""What the documentation says is what the code has."""

import inspect
import re
from pathlib import Path

import pytest

from trainer_core import SettingsError, TrainingArguments, hookspecs

ROOT = Path(__file__).parent.parent
PLUGINS_PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
HOOKS = {name: function for name, function in vars(hookspecs).items() if hasattr(function, f"{hookspecs.PROJECT}_spec")}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_arguments_and_docstring(hook):
    arguments = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    text = " ".join((inspect.getdoc(HOOKS[hook]) or "").split())
    assert f"| `{hook}` | {arguments} | {text} |" in PLUGINS_PAGE


def test_no_hook_is_documented_that_does_not_exist():
    assert set(re.findall(r"^\| `(\w+)` \| trainer", PLUGINS_PAGE, flags=re.MULTILINE)) == set(HOOKS)


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_mistakes_that_the_readme_shows_read_as_it_shows_them(tmp_path):
    settings = tmp_path / "train.yaml"
    settings.write_text("learning_rate: -1.0\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        TrainingArguments.from_file(settings, evaluation_stratgy="epoch")
    assert str(caught.value).replace(str(settings), "train.yaml") in (ROOT / "README.md").read_text(encoding="utf-8")
