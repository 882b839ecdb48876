"""What the documentation says is what the code has."""

import inspect
import os
import re
import subprocess
import sys
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]


def anchors_of(page):
    """Gives the names under which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    targets = {(page if not path else page.parent / path, anchor) for path, anchor in links}
    assert [str(target) for target, _ in targets if not target.exists()] == []
    assert [anchor for target, anchor in targets if anchor and anchor not in anchors_of(target)] == []


def test_pages_lead_to_one_another():
    readme = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"(docs/{page.name})" not in readme] == []


def code_of(page, language):
    """Gives a page's blocks as one program in which every line has the number that it has on the page."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside = line == f"```{language}" or (inside and line != "```")
        lines.append(line if inside and line != f"```{language}" else "")
    return "\n".join(lines)


@pytest.mark.slow
def test_the_guide_runs_from_the_first_block_of_python_to_the_last(tmp_path):
    program = tmp_path / "guide.md.py"
    program.write_text(f"{code_of(ROOT / 'docs' / 'guide.md', 'python')}\nprint('reached the end')\n", encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "reached the end"
    assert (tmp_path / "runs" / "parity" / "final" / "model.safetensors").is_file()


def test_the_mistakes_that_the_readme_shows_read_as_it_shows_them(tmp_path):
    settings = tmp_path / "train.yaml"
    settings.write_text("learning_rate: -1.0\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        TrainingArguments.from_file(settings, evaluation_stratgy="epoch")
    assert str(caught.value).replace(str(settings), "train.yaml") in (ROOT / "README.md").read_text(encoding="utf-8")


COMMANDS_PAGE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_block_on_command_lines_runs(tmp_path):
    for language, block in re.findall(r"```(\w+)\n(.*?)```", COMMANDS_PAGE, flags=re.DOTALL):
        if language != "bash":
            (tmp_path / re.match(r"# (\S+)\n", block)[1]).write_text(block, encoding="utf-8")
            continue
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, block + done.stderr
        said = done.stdout.splitlines()
        if "finetune.yaml" in block:
            assert said == ["bert 300 0.0003"]
        if "torchrun" in block:
            assert sorted(said) == ["0 of 2: WARNING cpu False", "1 of 2: ERROR cpu True"]
    assert "--learning_rate" in (tmp_path / "help.txt").read_text()
