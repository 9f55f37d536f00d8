"""Ablation on a real server: the local numbers, in one job."""

from __future__ import annotations

import numpy as np

import nnattr
from nnattr import LogitDiff, Model, Scores
from tests.ndif.server import Server

NAME = "teaching-llama"
HEADS = [(0, 0), (1, 2)]


def close(there: Scores, here: Scores) -> None:
    """The same but for rounding, beside the largest."""
    atol = 2e-6 * float(abs(here.raw).max())
    np.testing.assert_allclose(there.raw, here.raw, rtol=0, atol=atol)


def same(remote: Model) -> None:
    local = nnattr.load(NAME)
    task = nnattr.tasks.ioi(local.tokenizer, n=3, seed=1)
    for method in ("zero", "mean"):
        here, there = (
            nnattr.ablate(m, task, LogitDiff(), replacement=method) for m in (local, remote)
        )
        close(there, here)
        assert there.provenance.jobs == 1
        here, there = (
            nnattr.ablate_together(m, task, LogitDiff(), HEADS, replacement=method, keep=True)
            for m in (local, remote)
        )
        close(there, here)


def test_in_the_models_process(server: Server) -> None:
    same(nnattr.load(NAME, backend=server.url))


def test_in_a_sandbox(sandboxed_server: Server) -> None:
    same(nnattr.load(NAME, backend=sandboxed_server.url))
