"""The house: its public names, and the rule that a module imports only from floors below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nnattr

ROOT = Path(nnattr.__file__).parent

#: Floor of each module or folder, as the design lays them out.
FLOORS = {
    "errors": 0,
    "axes": 0,
    "drawing": 0,
    "storage": 0,
    "config": 0,
    "headkinds": 0,
    "teaching": 0,
    "arch": 1,
    "linalg": 1,
    "tokens": 1,
    "tasks": 1,
    "metrics": 1,
    "results": 1,
    "backend": 2,
    "model": 3,
    "methods": 4,
    "plots": 5,
    "analysis": 5,
    "demo": 5,
    "cli": 6,
    "page": 6,
    "report": 6,
    "__main__": 6,
    "__init__": 7,
}
PUBLIC = {
    "KL",
    "NDIF",
    "QKV",
    "ArchError",
    "ArchSpec",
    "BackendError",
    "GroupLogProbDiff",
    "GroupLogitDiff",
    "GroupProbDiff",
    "HeadScores",
    "Job",
    "Lens",
    "Local",
    "LogProb",
    "LogitDiff",
    "Loss",
    "MetricError",
    "Model",
    "NnattrError",
    "Patterns",
    "Place",
    "Prob",
    "ResultError",
    "Scores",
    "SequenceLogProb",
    "Simulated",
    "Task",
    "TaskError",
    "ablate",
    "ablate_together",
    "activation_patching",
    "agreement",
    "attention_patterns",
    "attention_vs_mlp",
    "attribution_patching",
    "capture",
    "compare_runs",
    "copying_score",
    "detect_heads",
    "composition",
    "decompose_attention",
    "direct_logit_attribution",
    "generate",
    "head_weights",
    "inspect_prompt",
    "load",
    "load_result",
    "logit_lens",
    "metrics",
    "most_frequent_answers",
    "name_mover_score",
    "next_token_attribution",
    "ov_circuit",
    "plots",
    "position_pattern",
    "qk_circuit",
    "submit",
    "tasks",
    "verify",
}


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """The rooms of nnattr that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "nnattr":
            names |= {f"nnattr.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("nnattr.")}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    room = _room(path)
    for other in _imports(path) - {room}:
        downwards = FLOORS[other] < FLOORS[room] or (FLOORS[other] == FLOORS[room] <= 1)
        assert downwards or FLOORS[room] >= 6, f"{room} imports {other}"


def test_the_floor_one_files_need_no_nnsight_and_no_plotly() -> None:
    for room, floor in FLOORS.items():
        if floor > 1:
            continue
        files = [ROOT / f"{room}.py", *sorted((ROOT / room).rglob("*.py"))]
        for path in filter(Path.exists, files):
            text = path.read_text(encoding="utf-8")
            assert "import nnsight" not in text, path
            assert "from nnsight" not in text, path
            assert "import plotly" not in text.replace("    import plotly", ""), path


def test_only_the_backend_knows_about_remote_execution() -> None:
    for path in ROOT.rglob("*.py"):
        if _room(path) != "backend":
            assert "remote=" not in path.read_text(encoding="utf-8"), path


def test_the_public_names() -> None:
    assert set(nnattr.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(nnattr, name) is not None
    with pytest.raises(AttributeError, match="has no 'hooks'"):
        _ = nnattr.hooks


def test_importing_nnattr_loads_nothing_heavy() -> None:
    code = (
        "import sys, nnattr; "
        "print([m for m in ('torch', 'nnsight', 'transformers', 'plotly', 'xarray', 'pandas') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_path_of_a_machine_is_in_the_code() -> None:
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "/home/" not in text, path
        assert "/root/" not in text, path
