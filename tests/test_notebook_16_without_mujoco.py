"""Notebook 16 where MuJoCo is not installed: one clear line, then recorded results."""

import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest

from rlhf_mini.control import hopper

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
(NOTEBOOK,) = FOLDER.glob("16_*.ipynb")


def code_for_the_hopper():
    """The setup, and every code cell from the back-flip's heading on."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    start = [c.source.startswith("## The back-flip") for c in cells].index(True)
    setup = next(c for c in cells if c.cell_type == "code")
    return [setup, *(c for c in cells[start:] if c.cell_type == "code")]


def test_the_page_runs_on_recorded_results_and_says_once_what_is_missing(
    monkeypatch, capsys
):
    for name in [m for m in sys.modules if m.split(".")[0] == "mujoco"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)  # an import of it fails
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr("IPython.display.display", lambda *shown, **how: None)
    monkeypatch.setattr("rlhf_mini.labelling.display", lambda *shown, **how: None)
    matplotlib.use("agg")
    page, said = {}, []
    for cell in code_for_the_hopper():
        exec(compile(cell.source, cell.id, "exec"), page)
        said.append(capsys.readouterr().out)
    setup, world, *rest = said
    assert hopper.MISSING in setup.splitlines()
    assert world == hopper.MISSING + "\n"
    assert not any("MuJoCo" in text for text in rest)
    matplotlib.pyplot.close("all")


def test_the_blocked_import_is_what_a_missing_package_looks_like(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError):
        import mujoco  # noqa: F401
