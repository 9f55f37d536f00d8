"""The notebook about remote runs, run remotely."""

from __future__ import annotations

import re

from tests.ndif.server import Server
from tests.notebooks.build import SOURCES, executed

REMOTE = next(path for path in SOURCES if path.stem.startswith("03_"))


def test_the_remote_notebook_runs_on_a_server(server: Server) -> None:
    notebook = executed(REMOTE, NNATTR_BACKEND=server.url, NNATTR_MODEL="teaching-llama")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    assert "A real server." in said
    cost = re.search(r"(\d+) job\(s\), ([\d,]+) bytes sent, ([\d,]+) received", said)
    assert cost, said
    jobs, sent, received = (int(number.replace(",", "")) for number in cost.groups())
    assert jobs == 1
    assert 0 < received < 50_000, "scores, not logits or activations"
    assert 0 < sent < 200_000, "prompts and code"
    difference = re.search(r"difference: (\S+)", said)
    assert difference, said
    assert float(difference[1]) < 1e-4, "a submitted job gives the same scores"
