"""Patterns, head detectors and capture on a real server: the local numbers.

A server may ignore the client's attention implementation, so the job sets it there for one pass. In
a sandbox that is out of reach, and said so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import Model
from nnattr.errors import BackendError
from nnattr.model.patterns import attention_paths
from nnattr.runs.inputs import PromptBatch
from nnattr.runs.patterns import patterns
from nnattr.runs.portions import answered
from nnattr.tokens import encode
from tests.ndif.server import Server

NAMES = ("teaching-gpt2", "teaching-llama")


def pattern_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    prompts = PromptBatch(**payload["prompts"])
    return answered(wanted, nn, prompts, payload)


def wanted(nn: Any, prompts: PromptBatch, payload: dict[str, Any]) -> dict[str, Any]:
    return {"patterns": [one.cpu() for one in patterns(nn, prompts, payload["paths"])]}


def read(model: Model, prompts: list[str]) -> list[torch.Tensor]:
    tokens = encode(model.tokenizer, prompts)
    payload = {
        "prompts": {"ids": tokens.ids, "mask": tokens.mask},
        "paths": attention_paths(model),
    }
    return model.run(pattern_job, payload, label="patterns").values["patterns"]


def prompts(model: Model) -> list[str]:
    return list(nnattr.tasks.ioi(model.tokenizer, n=3, seed=1).clean)


@pytest.mark.parametrize("name", NAMES)
def test_patterns_in_the_models_process(server: Server, name: str) -> None:
    local, remote = nnattr.load(name), nnattr.load(name, backend=server.url)
    for _ in range(2):  # the second finds the server as the first did
        for here, there in zip(
            read(local, prompts(local)), read(remote, prompts(local)), strict=True
        ):
            np.testing.assert_allclose(there, here, rtol=0, atol=1e-6)


def test_a_sandbox_has_no_patterns(sandboxed_server: Server) -> None:
    remote = nnattr.load(NAMES[0], backend=sandboxed_server.url)
    with pytest.raises(BackendError, match="A sandboxed server cannot be asked"):
        read(remote, prompts(remote))


def sizes(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A user's own reduction."""
    return {"norm": found["z"].norm(dim=-1), "own": found["pattern"].diagonal(dim1=-2, dim2=-1)}


def equal_but_for_patterns(local: Model, remote: Model) -> None:
    """What needs no patterns, on a server with or without its weights in the job's process."""
    task = nnattr.tasks.ioi(local.tokenizer, n=3, seed=1)
    sites = ["resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "neuron", "mlp_out"]
    here, there = (
        nnattr.capture(model, task, sites, positions=[0, -1]) for model in (local, remote)
    )
    for site in sites:
        np.testing.assert_allclose(there[site], here[site], rtol=0, atol=1e-4)
    scores = [nnattr.copying_score(model, task, positions="IO").scores for model in (local, remote)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_in_the_models_process(server: Server, name: str) -> None:
    local, remote = nnattr.load(name), nnattr.load(name, backend=server.url)
    equal_but_for_patterns(local, remote)
    task = nnattr.tasks.ioi(local.tokenizer, n=3, seed=1)
    for weighted in (False, True):
        here, there = (
            nnattr.attention_patterns(model, task, ["1.0", (2, 1)], weighted=weighted)
            for model in (local, remote)
        )
        np.testing.assert_allclose(there.values, here.values, rtol=0, atol=1e-4)
    found = [nnattr.detect_heads(model, n=3, length=15) for model in (local, remote)]
    np.testing.assert_allclose(found[1].scores, found[0].scores, rtol=0, atol=1e-5)
    assert found[0].loss is not None
    assert found[1].loss is not None
    np.testing.assert_allclose(found[1].loss, found[0].loss, rtol=0, atol=1e-4)
    sites = ["rot_q", "rot_k", "pattern"]
    meeting = [nnattr.capture(model, task, sites, positions="last") for model in (local, remote)]
    for site in sites:
        np.testing.assert_allclose(meeting[1][site], meeting[0][site], rtol=0, atol=1e-4)
    movers = [nnattr.name_mover_score(model, task).scores for model in (local, remote)]
    np.testing.assert_allclose(movers[1], movers[0], rtol=0, atol=1e-5)
    own = [
        nnattr.capture(model, task, ["z", "pattern"], layers=1, reduce=sizes)
        for model in (local, remote)
    ]
    for key in ("norm", "own"):
        np.testing.assert_allclose(own[1][key], own[0][key], rtol=0, atol=1e-4)


def test_in_a_sandbox(sandboxed_server: Server) -> None:
    local, remote = (nnattr.load(NAMES[1], backend=b) for b in ("local", sandboxed_server.url))
    equal_but_for_patterns(local, remote)
    for call in (nnattr.attention_patterns, nnattr.detect_heads):
        with pytest.raises(BackendError, match="A sandboxed server cannot be asked"):
            call(remote, prompts(remote))
    with pytest.raises(BackendError, match="sandbox"):
        nnattr.capture(remote, prompts(remote), "rot_q")
