"""What is in the wheel and the source archive, and that the wheel alone runs the demo."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import nnattr

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
WEIGHTS = [
    f"nnattr/teaching/{name}/{file}"
    for name in ("teaching-gpt2", "teaching-llama")
    for file in ("config.json", "model.safetensors", "tokenizer.json", "metrics.json")
]
needs_hatchling = pytest.mark.skipif(
    find_spec("hatchling") is None, reason="needs hatchling (the test extra)"
)


def run(*words: object, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources() -> set[str]:
    """Every file of the package that is not made by running it."""
    files = (path for path in (ROOT / "nnattr").rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in files}
    return {name for name in names if "__pycache__" not in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    words = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w"]
    run(*words, folder, ROOT, cwd=folder)
    run("-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    return folder


@needs_hatchling
def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"nnattr-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "nnattr = nnattr.cli:main" in archive.read(entry).decode()
    info = f"nnattr-{VERSION}.dist-info/"
    inside = {name for name in names if not name.startswith(info)}
    assert inside == sources()
    assert {"nnattr/py.typed", *WEIGHTS} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in names)


@needs_hatchling
def test_the_source_archive_holds_what_builds_the_wheel(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    beside = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    beside |= {path.name for path in ROOT.glob("constraints*.txt")}
    assert sources() | beside | {"pyproject.toml"} <= names
    assert {name.split("/")[0] for name in names} <= beside | {
        "nnattr",
        "pyproject.toml",
        "PKG-INFO",
        ".gitignore",
    }


@needs_hatchling
def test_the_wheel_alone_runs_the_demo(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    target, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    words = ["-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel]
    run(*words, cwd=empty)
    where = {"PYTHONPATH": str(target)}
    code = "import nnattr; print(nnattr.__file__)"
    assert run("-c", code, cwd=empty, **where).startswith(str(target))
    printed = run("-m", "nnattr", "demo", "--n", "4", cwd=empty, **where)
    assert "L1H2" in printed
    assert (empty / "nnattr-demo.html").stat().st_size > 1e6


def test_the_version_is_in_one_place() -> None:
    assert run("-m", "nnattr", "--version", cwd=ROOT).strip() == nnattr.__version__ == VERSION
    elsewhere = (ROOT / "CITATION.cff", *(ROOT / "nnattr").rglob("*.py"))
    for path in elsewhere:
        assert f'"{VERSION}"' not in path.read_text(encoding="utf-8"), path
