"""The papers for people who change nnattr name what is there: every path, module and name."""

from __future__ import annotations

import ast
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]
DRAWING = ROOT / "docs" / "figures" / "life_of_a_call.svg"
PACKAGES = sorted((ROOT / "nnattr").rglob("__init__.py"))

PATH = re.compile(r"\.?[\w-]+(/[\w.-]+)*(/|\.(py|pyi|md|toml|yml|txt|svg))|\.ci/run|Makefile")
NAME = re.compile(r"nnattr(\.\w+)+")


def quoted(text: str) -> set[str]:
    """What stands between backticks, and the files that a drawing names, word by word."""
    files = re.findall(r'class="file"[^>]*>([^<]+)<', text)
    pieces = [*re.findall(r"`+([^`\n]+)`+", text), *files]
    return {word for piece in pieces for word in piece.split()}


def there(path: str) -> bool:
    """Whether a path exists, from the repository's root or from the package's."""
    return (ROOT / path).exists() or (ROOT / "nnattr" / path).exists()


def importable(name: str) -> bool:
    """Whether a dotted name is a module of nnattr, or something in one."""
    try:
        return pkgutil.resolve_name(name) is not None
    except (AttributeError, ImportError):
        return False


def missing(text: str) -> set[str]:
    """The paths and names of a text that do not exist."""
    words = {word.strip("().,;:") if NAME.match(word) else word for word in quoted(text)}
    paths = {word for word in words if PATH.fullmatch(word) and not there(word)}
    return paths | {word for word in words if NAME.fullmatch(word) and not importable(word)}


@pytest.mark.parametrize(
    "paper", [*PAPERS, DRAWING, *PACKAGES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_a_paper_names_exists(paper: Path) -> None:
    assert missing(paper.read_text(encoding="utf-8")) == set()


def test_what_does_not_exist_is_found() -> None:
    assert missing("`engine/rows.py` `tests/oracles/` `nnattr.Scores` `nnattr.engine`") == set()
    assert missing("`engine/nothing.py` and `tests/nothing/`") == {
        "engine/nothing.py",
        "tests/nothing/",
    }
    assert missing("`nnattr.engine.rows.Columns`, ``nnattr.nothing``") == {
        "nnattr.engine.rows.Columns",
        "nnattr.nothing",
    }
    assert missing('<text class="file" x="1">jobs/frame.py jobs/nothing.py</text>') == {
        "jobs/nothing.py"
    }


def section(title: str) -> str:
    """A section of the page on the architecture."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_tree_is_the_one_that_the_linter_holds() -> None:
    """Every file and folder of the package, in the order of the floors, the ground first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = contracts["contracts"][0]["layers"][::-1]
    floor = {name: i for i, line in enumerate(floors) for name in re.findall(r"\w+", line)}
    rows = re.findall(r"^\| (`.+?) \|", section("The tree"), re.MULTILINE)
    shown = [name for row in rows for name in re.findall(r"`(\w+)(?:/|\.py)`", row)]
    entries = [path for path in (ROOT / "nnattr").iterdir() if path.suffix in ("", ".py")]
    assert set(shown) == {path.stem for path in entries if not path.name.startswith("_")}
    assert [floor[name] for name in shown] == sorted(floor[name] for name in shown)


@pytest.mark.parametrize("folder", ["calls", "graph", "jobs", "maps", "methods", "model", "runs"])
def test_every_file_of_a_folder_is_named_in_its_docstring(folder: str) -> None:
    """A newcomer finds the file of a question, and of a trick; a job lies beside its question."""
    init = ROOT / "nnattr" / folder / "__init__.py"
    files = [path.stem for path in init.parent.rglob("*.py") if not path.name.startswith("_")]
    said = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    columns = [line.split("  ")[0] for line in said.splitlines() if line.startswith("`")]
    named = {name for column in columns for name in re.findall(r"`(\w+)`", column)}
    assert {name.removesuffix("_job") for name in files} == named


def test_the_named_values_are_defined_where_the_page_says() -> None:
    page = section("The named values of the engine")
    rows = re.findall(r"^\| `(\w+)` \| `([\w/.]+)`", page, re.MULTILINE)
    assert len(rows) >= 5
    for name, path in rows:
        assert f"class {name}:" in (ROOT / "nnattr" / path).read_text(encoding="utf-8"), name


def test_every_target_of_make_is_explained() -> None:
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    paper = PAPERS[0].read_text(encoding="utf-8")
    assert targets is not None
    assert {name for name in targets[1].split() if f"make {name}" not in paper} == set()
