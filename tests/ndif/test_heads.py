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
from nnattr import BackendError, Model
from nnattr.model.patterns import accepted, attention_paths, patterns
from nnattr.tokens import encode
from tests.ndif.server import Server

NAMES = ("teaching-gpt2", "teaching-llama")


def pattern_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    found, problem = patterns(nn, payload["prompts"], payload["paths"])
    return {"refused": problem} if problem else {"patterns": [one.cpu() for one in found]}


def read(model: Model, prompts: list[str]) -> list[torch.Tensor]:
    tokens = encode(model.tokenizer, prompts)
    payload = {
        "prompts": {"ids": tokens.ids, "mask": tokens.mask},
        "paths": attention_paths(model),
    }
    return accepted(model, model.run(pattern_job, payload, label="patterns").values)["patterns"]


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
