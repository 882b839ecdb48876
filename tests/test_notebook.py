"""A notebook's table, against a small stand-in for IPython."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from trainer_core.console import notebook
from trainer_core.console.notebook import is_notebook, progress_html, report_html
from trainer_core.console.report import Report
from trainer_core.trainer import Trainer


@pytest.fixture
def cell(monkeypatch):
    """IPython in a kernel; gives what a cell shows, in order, each with its versions."""
    shown = []

    def display(thing, display_id=None):
        versions = [thing]
        shown.append(versions)
        return SimpleNamespace(update=versions.append) if display_id else None

    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    module.HTML, module.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def test_a_kernel_is_known_and_a_plain_shell_is_none(cell, monkeypatch):
    assert is_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", SimpleNamespace)
    assert not is_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not is_notebook()


def test_a_run_is_a_header_one_table_and_a_summary(cell, make_trainer, capsys):
    trainer = make_trainer(Trainer, block_plugins=["logging", "checkpointing"], eval_strategy="epoch")
    trainer.train()
    header, table, summary = cell
    assert (len(header), len(summary)) == (1, 1)
    assert header[0].startswith("<b>Training Classifier on cpu</b><table>")
    assert "10/10" in table[-1]
    assert ">eval<" in table[-1]
    assert summary[0].startswith("<b>✓ Completed 10 steps")
    assert capsys.readouterr().out == ""


def test_everything_in_it_is_text(cell):
    assert "<script>" not in report_html(Report("<script>", [("<script>", "<script>")]))


def test_only_the_newest_rows_are_kept():
    trainer = SimpleNamespace(state=SimpleNamespace(global_step=0, max_steps=1))
    display = notebook.NotebookDisplay(trainer, None)
    for step in range(200):
        display.row("train", {"loss": 1.0, "step": step})
    assert [logs["step"] for _, logs in display._rows] == list(range(150, 200))


def test_the_table_has_a_column_a_name():
    moment = SimpleNamespace(
        activity="training", steps="2/4", epochs="epoch 0.5", rate="", elapsed_clock="0:01", time_left="", step=2,
        max_steps=4,
    )  # fmt: skip
    html = progress_html(moment, [("train", {"loss": 0.5, "step": 1}), ("eval", {"eval_f1": 0.25, "step": 2})])
    assert "<tr><th>step</th><th></th><th>loss</th><th>f1</th></tr>" in html
    assert html.count("<td") == 8
