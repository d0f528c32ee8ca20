"""Notebooks are pairs of a script, which is edited, and a notebook, which is read (and run by
nbmake): both must say the same."""

from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.mark.parametrize("script", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_script_and_notebook_are_one(script):
    paired = script.with_suffix(".ipynb")
    assert paired.exists(), f"run: jupytext --to ipynb {script.name}"

    def cells(path):
        return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]

    assert cells(script) == cells(paired), f"run: jupytext --to ipynb {script.name}"
