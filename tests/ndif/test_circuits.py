"""Weights on a real server: read there, reduced there, and the local numbers.

In a sandbox the job's process has no parameters, and modules are asked for what they do.
"""

from __future__ import annotations

import numpy as np
import pytest

import nnattr
from nnattr import Model
from tests.ndif.server import Server

NAME = "teaching-llama"


@pytest.fixture(scope="module")
def local() -> Model:
    return nnattr.load(NAME)


def same(here: Model, there: Model) -> None:
    for make in (
        lambda model: nnattr.weights.ov(model, [(1, 0), (1, 1)], fold_norm=True),
        lambda model: nnattr.weights.qk(model, (1, 0), key_via=(0, 0), distance=2),
    ):
        one, other = make(here), make(there)
        assert other.copying_accuracy(5) == pytest.approx(one.copying_accuracy(5), abs=2e-3)
        assert other.norm() == pytest.approx(one.norm(), rel=1e-4)
    keys = [nnattr.weights.composition(model, "K", samples=2).values for model in (here, there)]
    np.testing.assert_allclose(keys[1], keys[0], rtol=0, atol=1e-5)
    task = nnattr.tasks.repeated_tokens(here.tokenizer, n=2, length=6)
    parts = [nnattr.decompose_attention(model, task, (1, 0)).data for model in (here, there)]
    for name in ("query", "key", "spread", "scores", "total", "pattern"):
        np.testing.assert_allclose(parts[1][name], parts[0][name], rtol=0, atol=1e-3)
    matrices = [nnattr.weights.head(model, (2, 3)).W_V for model in (here, there)]
    np.testing.assert_allclose(matrices[1], matrices[0], rtol=0, atol=1e-5)
    written = [nnattr.next_token_attribution(model, task) for model in (here, there)]
    np.testing.assert_allclose(written[1].raw, written[0].raw, rtol=0, atol=1e-4)
    assert 0 < written[1].provenance.bytes_received < 40_000


def test_in_the_models_process(server: Server, local: Model) -> None:
    same(local, nnattr.load(NAME, backend=server.url))


def test_in_a_sandbox(sandboxed_server: Server, local: Model) -> None:
    same(local, nnattr.load(NAME, backend=sandboxed_server.url))
