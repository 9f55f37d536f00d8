"""The documentation site builds without a warning, and asks no network for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("zensical", reason="needs the docs extra (make docs)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from a copy, so that the working tree stays as it is."""
    copy = tmp_path_factory.mktemp("docs")
    for name in ("docs", "nnattr"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    shutil.copy(ROOT / "mkdocs.yml", copy)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "site"


def test_every_page_is_there(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in ROOT.glob("docs/**/*.md")}
    assert {page for page in pages if not (site / page).exists()} == set()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetching = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src=[\"']?https?://[^>]*>"
        r"|<link[^>]+rel=[\"']?(?:stylesheet|preload|preconnect)[^>]+https?://[^>]*>"
    )
    for page in site.rglob("*.html"):
        assert not fetching.search(page.read_text(encoding="utf-8")), page


def test_equations_are_drawn_without_a_script(site: Path) -> None:
    for page in ("concepts/attribution_patching.html", "api/results.html"):
        assert "<math" in (site / page).read_text(encoding="utf-8")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, page
        assert ":math:" not in text, page
        assert "$$" not in text, page
