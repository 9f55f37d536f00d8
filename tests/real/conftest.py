"""Tests of what is claimed of the real model, SmolLM2-135M-Instruct with weights of 4 bits (Q4_1).

They run when the folder is asked for (``make test-real``, which fetches the model), not with the
other tests; `tests.support.real` says what happens without the model. Pages and notebooks that show
this model are held against it in ``tests/docs`` and ``tests/notebooks``, under the same mark.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import nnattr
from nnattr import Model, Scores, Task, pretrained
from tests.support.asked_for import left_out
from tests.support.real import needs_real_model

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless it, or something in it, was asked for."""
    return left_out(HERE, config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("real")


@pytest.fixture(scope="session")
def model() -> Model:
    needs_real_model()
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
