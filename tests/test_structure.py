"""The house: its public names, and what import-linter, which holds the floors, cannot see."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import nnattr
from tests.support.quick import QUICK

ROOT = Path(nnattr.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

PUBLIC = {
    "EdgeScores",
    "KL",
    "NDIF",
    "GroupLogProbDiff",
    "GroupProbDiff",
    "Job",
    "Local",
    "LogProb",
    "LogitDiff",
    "Loss",
    "Model",
    "NnattrError",
    "Prob",
    "Scores",
    "SequenceLogProb",
    "SequenceLogProbDiff",
    "Simulated",
    "Task",
    "ablate",
    "ablate_together",
    "activation_patching",
    "agreement",
    "arch",
    "attention_patterns",
    "attribution_patching",
    "capture",
    "compare_runs",
    "copying_score",
    "detect_heads",
    "decompose_attention",
    "direct_logit_attribution",
    "edit",
    "edited",
    "errors",
    "generate",
    "inspect_prompt",
    "load",
    "load_result",
    "logit_lens",
    "metrics",
    "most_frequent_answers",
    "name_mover_score",
    "next_token_attribution",
    "path_patching",
    "plots",
    "results",
    "submit",
    "tasks",
    "verify",
    "weights",
}


#: What imports a module by a name that no linter reads.
IMPORTERS = {
    "__import__",
    "import_module",
    "lazy_loader",
    "exec",
    "eval",
    "run_module",
    "run_path",
    "resolve_name",
}
#: The public names are loaded when they are first asked for.
LAZY = {ROOT / "__init__.py"}


def hidden_imports(source: str) -> set[str]:
    """The names in a source by which it could import a module unseen by import-linter."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                names.add(name)
            case ast.Attribute(attr="eval" | "exec"):  # a module's, a table's
                pass
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.ImportFrom(names=aliases) | ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
    return names & IMPORTERS


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_is_hidden_from_the_linter(path: Path) -> None:
    hidden = hidden_imports(path.read_text(encoding="utf-8"))
    assert path in LAZY or not hidden, f"{path} imports by {hidden}: write a plain import"


@pytest.mark.parametrize(
    "source",
    [
        "from importlib import import_module as load",
        "import importlib\nimportlib.import_module('nnattr.plots')",
        "__import__('nnattr.plots')",
        "exec('import nnattr.plots')",
        "import runpy\nrunpy.run_module(name)",
    ],
)
def test_a_hidden_import_is_seen(source: str) -> None:
    assert hidden_imports(source)


def own_packages(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Files that import a package which they lie in and which imports them, by whatever way."""
    return {
        (file, package)
        for file in graph.modules
        for package in graph.find_modules_directly_imported_by(file)
        if file.startswith(f"{package}.") and graph.chain_exists(importer=package, imported=file)
    }


def test_no_circle_goes_through_a_package_itself() -> None:
    graph = grimp.build_graph("nnattr", cache_dir=None)
    assert own_packages(graph) == set()
    graph.add_import(importer="nnattr.tasks.task", imported="nnattr.tasks")
    assert own_packages(graph) == {("nnattr.tasks.task", "nnattr.tasks")}


def test_only_the_backend_knows_about_remote_execution() -> None:
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != "backend":
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
        "print([m for m in ('torch', 'nnsight', 'transformers', 'plotly', 'xarray', 'pandas', "
        "'jinja2', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_path_of_a_machine_is_in_the_code() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "/home/" not in text, path
        assert "/root/" not in text, path


def test_what_tests_share_lies_in_no_test() -> None:
    for path in (ROOT.parent / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in modules if ".test_" in f".{name}"], path


def test_what_is_called_quick_is_there() -> None:
    files = {path.stem: path for path in (ROOT.parent / "tests").rglob("test_*.py")}
    for name in QUICK:
        file, _, function = name.partition("::")
        assert f"def {function}" in files[file].read_text(encoding="utf-8"), name
