"""The notebooks run from top to bottom, and what is committed is what their sources describe."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest

from tests.notebooks.build import (
    IMAGE,
    LARGEST,
    LIVE,
    ROOT,
    SOURCES,
    executed,
    is_real,
    made_from,
    source,
)
from tests.support.real import needs_real_model

NAMES = [path.stem for path in SOURCES]
MARKED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.real] if is_real(path) else [])
    for path in SOURCES
]


def figures(notebook: nbformat.NotebookNode) -> list[dict[str, object]]:
    """What each figure was kept as."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"] for output in outputs if LIVE in output.get("data", {})]


def test_there_are_notebooks():
    assert len(SOURCES) >= 8
    assert [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_a_notebook_is_in_step_with_its_source(path: Path):
    committed = jupytext.read(path.with_suffix(".ipynb"))
    nbformat.validate(committed)
    wanted = [(cell.cell_type, cell.source) for cell in source(path).cells]
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == wanted, "make notebooks"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_a_notebook_shows_what_it_gives(path: Path):
    target = path.with_suffix(".ipynb")
    committed = jupytext.read(target)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [one for cell in code for one in cell.outputs if one.output_type == "error"]
    assert figures(committed)
    assert all(IMAGE in kept for kept in figures(committed)), "seen where nothing runs"
    assert target.stat().st_size < LARGEST
    text = target.read_text(encoding="utf-8")
    assert not [place for place in (str(ROOT), "/home/", "/tmp/", ".venv/") if place in text]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_first_cell_picks_model_and_backend(path: Path):
    first = next(cell.source for cell in source(path).cells if cell.cell_type == "code")
    assert "MODEL" in first
    assert "BACKEND" in first
    assert "nnattr.load(MODEL, backend=BACKEND)" in first
    assert "Llama-3.1-8B" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MARKED)
def test_a_notebook_runs(path: Path):
    committed = jupytext.read(path.with_suffix(".ipynb"))
    if committed.metadata.get("made_from") == made_from(path):
        pytest.skip("what is committed was made from these very files")
    if is_real(path):
        needs_real_model()
    fresh = executed(path)
    assert len(figures(fresh)) == len(figures(committed))
