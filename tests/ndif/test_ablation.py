"""Ablation on a real server: the local numbers, in one job."""

from __future__ import annotations

import numpy as np

import nnattr
from nnattr import LogitDiff, Model
from tests.ndif.server import Server

NAME = "teaching-llama"
HEADS = [(0, 0), (1, 2)]


def same(remote: Model) -> None:
    local = nnattr.load(NAME)
    task = nnattr.tasks.ioi(local.tokenizer, n=3, seed=1)
    for method in ("zero", "mean"):
        here, there = (
            nnattr.ablate(m, task, LogitDiff(), replacement=method) for m in (local, remote)
        )
        np.testing.assert_allclose(there.raw, here.raw, rtol=0, atol=1e-5)
        assert there.provenance.jobs == 1
        here, there = (
            nnattr.ablate_together(m, task, LogitDiff(), HEADS, replacement=method, keep=True)
            for m in (local, remote)
        )
        np.testing.assert_allclose(there.raw, here.raw, rtol=0, atol=1e-5)


def test_in_the_models_process(server: Server) -> None:
    same(nnattr.load(NAME, backend=server.url))


def test_in_a_sandbox(sandboxed_server: Server) -> None:
    same(nnattr.load(NAME, backend=sandboxed_server.url))
