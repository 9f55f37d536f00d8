"""Tests of what is claimed of the real model, SmolLM2-135M-Instruct with weights of 4 bits (Q4_1).

They run when the folder is asked for (``make test-real``, which fetches the model), not with the
other tests. Without the model they are skipped; with ``NNATTR_REQUIRE_REAL=1``, as in CI, they
fail.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import nnattr
from nnattr import Model, Scores, Task, pretrained

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless it, or something in it, was asked for."""
    asked = (Path(arg.partition("::")[0]).resolve() for arg in config.args)
    return None if any(path.is_relative_to(HERE) for path in asked) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("real")


@pytest.fixture(scope="session")
def model() -> Model:
    if not pretrained.is_here():
        required = os.environ.get("NNATTR_REQUIRE_REAL") == "1"
        (pytest.fail if required else pytest.skip)(pretrained.how_to_get())
    return nnattr.load(pretrained.NAME)


@pytest.fixture(scope="session")
def ioi(model: Model) -> Task:
    return nnattr.tasks.ioi(model.tokenizer, n=16, seed=0)


@pytest.fixture(scope="session")
def exact(model: Model, ioi: Task) -> Scores:
    return nnattr.activation_patching(model, ioi, nnattr.LogitDiff())


@pytest.fixture(scope="session")
def estimate(model: Model, ioi: Task) -> Scores:
    return nnattr.attribution_patching(model, ioi, nnattr.LogitDiff())
