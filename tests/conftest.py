"""What every test starts from: one thread, no network host of the user's, the local backend.

``--families=all`` runs every family of tiny models where a test runs over families; without it a
dear one takes those of `tests.support.families.CORE`. ``--fuzz=10000`` makes so many calls with
random wrong values (`tests.test_fuzz`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.support.quick import QUICK, VERSIONS

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    said = "families of tiny models that the dear tests run over"
    parser.addoption("--families", choices=("core", "all"), default="core", help=said)
    parser.addoption("--fuzz", type=int, default=500, help="calls with random wrong values")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark chosen ones; leave out families beyond the core, unless a case was asked for."""
    for item in items:
        names = {item.path.stem, f"{item.path.stem}::{item.name.partition('[')[0]}"}
        for marker, chosen in (("quick", QUICK), ("versions", VERSIONS)):
            if names & chosen:
                item.add_marker(marker)
    if config.getoption("--families") == "all" or any("[" in arg for arg in config.args):
        return
    beyond = [item for item in items if item.get_closest_marker("beyond_core")]
    items[:] = [item for item in items if not item.get_closest_marker("beyond_core")]
    config.hook.pytest_deselected(items=beyond)


@pytest.fixture(autouse=True)
def _nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's own configuration must not decide what a test sees."""
    monkeypatch.delenv("NNATTR_BACKEND", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


# no deadline: machines are noisy; the same examples in every run
settings.register_profile("nnattr", deadline=None, derandomize=True)
settings.load_profile("nnattr")
