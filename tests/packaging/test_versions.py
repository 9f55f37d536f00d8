"""Which versions nnattr allows, which are tested, and which the pages say: they are the same."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.versions import COMBINATIONS, requirements

ROOT = Path(__file__).parents[2]
FILES = {one.name: one.constraints for one in COMBINATIONS}
PYTHONS = [one.python for one in COMBINATIONS]
NEEDS = [Requirement(line) for line in requirements()]


def pins(name: str) -> dict[str, Version]:
    """The versions in the constraints file of a combination."""
    lines = (ROOT / FILES[name]).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(number) for name, number in pairs}


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.name)
def test_the_lowest_version_that_is_allowed_is_the_oldest_tested(need: Requirement) -> None:
    (lowest,) = (one.version for one in need.specifier if one.operator == ">=")
    assert pins("oldest")[canonicalize_name(need.name)] == Version(lowest)


@pytest.mark.parametrize("name", FILES)
def test_what_is_tested_is_allowed(name: str) -> None:
    tested = pins(name)
    for need in NEEDS:
        assert tested[canonicalize_name(need.name)] in need.specifier, need


def test_the_pages_say_what_is_tested() -> None:
    """Of the libraries that decide what a model computes, from the oldest to the newest."""
    oldest, newest = pins("oldest"), pins("newest")
    said = [f"Python {PYTHONS[0]} to {PYTHONS[-1]}"]
    for name in ("torch", "transformers"):
        said.append(f"{name} {short(oldest[name])} to {short(newest[name])}")
    for page in ("README.md", "docs/index.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        for words in said:
            assert words in text, f"{page} does not say: {words}"


def short(number: Version) -> str:
    return f"{number.major}.{number.minor}"


def test_every_python_that_is_promised_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [
        line.rpartition(" ")[2]
        for line in project["classifiers"]
        if line.startswith("Programming Language")
    ]
    assert promised == PYTHONS
    assert project["requires-python"] == f">={PYTHONS[0]}"


@pytest.mark.skipif(
    not any(f"versions-{name}" in sys.prefix for name in FILES),
    reason="runs in `make test-versions`",
)
def test_this_is_the_combination_that_was_asked_for() -> None:
    """No library came in another version than its constraints file says."""
    (name,) = (name for name in FILES if sys.prefix.endswith(f"versions-{name}"))
    wanted = pins(name)
    for need in NEEDS:
        found = version(need.name).partition("+")[0]  # torch's build is behind the plus
        assert Version(found) == wanted[canonicalize_name(need.name)], need.name
