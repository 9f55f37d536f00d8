"""A model under edits on a real server: the local numbers and words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task, edit
from tests.ndif.server import Server

NAME = "teaching-llama"


def under_edits(model: Model, task: Task) -> Model:
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    return nnattr.edited(
        model,
        [edit.ablate([(0, 1), (1, 2)], "mean", dataset=task), edit.steer(2, vector, scale=0.5)],
    )


def of_single_prompts(model: Model, task: Task) -> Model:
    """Edits at chosen positions, and such that say another thing of each prompt."""
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    mates = nnattr.tasks.ioi(model.tokenizer, n=12, seed=5)
    return nnattr.edited(
        model,
        [
            edit.ablate((0, 1), "resample", dataset=mates),
            edit.replace((2, 1), task=task, direction="noising"),
            edit.steer(2, vector, positions=[3, -1], scale=64.0),
        ],
    )


def same(remote: Model, under_edits: Callable[[Model, Task], Model]) -> None:
    local = nnattr.load(NAME)
    task = nnattr.tasks.ioi(local.tokenizer, n=3, seed=1)
    plain = nnattr.activation_patching(local, task, LogitDiff(), normalized=False)
    here, there = (
        nnattr.activation_patching(
            under_edits(model, task), task, LogitDiff(), normalized=False, positions="each"
        )
        for model in (local, remote)
    )
    np.testing.assert_allclose(there.raw, here.raw, rtol=0, atol=1e-4)
    assert there.provenance.jobs == 1
    assert there.provenance.arguments["engine"] == here.provenance.arguments["engine"] == "suffix"
    assert abs(plain.baselines - here.baselines).max() > 0.1
    here, there = (
        nnattr.generate(under_edits(model, task), task, max_new_tokens=6)
        for model in (local, remote)
    )
    assert here == there
    assert here != nnattr.generate(local, task, max_new_tokens=6)


EDITS = pytest.mark.parametrize("edits", [under_edits, of_single_prompts])


@EDITS
def test_in_the_models_process(server: Server, edits: Callable[[Model, Task], Model]) -> None:
    same(nnattr.load(NAME, backend=server.url), edits)


@EDITS
def test_in_a_sandbox(sandboxed_server: Server, edits: Callable[[Model, Task], Model]) -> None:
    same(nnattr.load(NAME, backend=sandboxed_server.url), edits)
