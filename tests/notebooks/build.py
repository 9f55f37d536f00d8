"""The notebooks: each ``notebooks/NN_name.py`` and the ``.ipynb`` that shows what it gives.

``python -m tests.notebooks.build`` executes the sources and writes the ``.ipynb`` files with their
outputs; ``make notebooks`` calls it. A figure is kept twice: as plotly's own data, for a live
notebook, and as an image, for pages that show notebooks without running anything. What it was made
from is kept with it, so that tests run it again only when something of that has changed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient

from nnattr import pretrained

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
LIVE, IMAGE = "application/vnd.plotly.v1+json", "image/png"
PATIENCE = 300  # seconds for one cell
LARGEST = 1.5e6  # bytes of a notebook; hosting sites do not show much larger ones


def source(path: Path) -> Any:
    """The notebook that a source describes, without outputs; cells are named by their number."""
    notebook = jupytext.read(path)
    notebook.metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell["id"], cell["metadata"] = f"cell-{i}", {}
    return notebook


def is_real(path: Path) -> bool:
    """Whether the notebook is about the real model."""
    return pretrained.NAME in path.read_text(encoding="utf-8")


def made_from(path: Path) -> str:
    """A digest of what a notebook's outputs come from: its source, the package, all versions."""
    package = [one for one in sorted((ROOT / "nnattr").rglob("*")) if one.is_file()]
    kept = [one for one in package if one.suffix != ".pyc"]
    digest = hashlib.sha256()
    for file in (path, ROOT / "constraints.txt", *kept):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def executed(path: Path, **environment: str) -> Any:
    """The notebook with its outputs, run in an empty folder on this checkout's nnattr.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = source(path)
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": search, "PLOTLY_RENDERER": "plotly_mimetype", **environment}
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=PATIENCE, kernel_name="python3", resources=where, record_timing=False
        )
        client.execute(env=env)
    for cell in notebook.cells:
        kept = [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]  # progress
        if cell.cell_type == "code":
            cell["outputs"] = kept
    return notebook


def pictured(notebook: Any) -> Any:
    """The notebook with an image beside each figure."""
    import plotly.io

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(LIVE)
            if figure is None:
                continue
            layout = figure["layout"]
            wide, tall = layout["width"], layout["height"]
            data = {key: figure[key] for key in ("data", "layout")}
            png = plotly.io.to_image(
                data, format="png", width=wide, height=tall, scale=2, validate=False
            )
            output["data"][IMAGE] = base64.b64encode(png).decode()
            title = re.sub("<[^>]*>", " ", layout["title"].get("text", "")).strip()
            output["metadata"][IMAGE] = {"width": wide, "height": tall, "alt": title}
    return notebook


def main(names: list[str]) -> None:
    """Execute the sources (those named, or all) and write their notebooks."""
    for path in SOURCES:
        if names and not any(name in path.stem for name in names):
            continue
        if is_real(path) and not pretrained.is_here():
            print(f"{path.stem}: left as it is; {pretrained.how_to_get()}", flush=True)
            continue
        notebook = pictured(executed(path))
        notebook.metadata["made_from"] = made_from(path)
        target = path.with_suffix(".ipynb")
        jupytext.write(notebook, target)
        size, text = target.stat().st_size, target.read_text(encoding="utf-8")
        assert str(ROOT) not in text, f"{target.name} shows a path of this machine"
        print(f"{target.name}: {size / 1e6:.2f} MB", flush=True)
        assert size < LARGEST, f"{target.name} is too large to be shown"


if __name__ == "__main__":
    main(sys.argv[1:])
