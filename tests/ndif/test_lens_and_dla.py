"""Attribution to logits, the lens and the prompt tools on a real server: the local numbers.

The sandboxed server runs jobs in a process without weights; they must be got by calling modules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnattr
from nnattr import Model, Task
from tests.ndif.server import Server

NAME = "teaching-llama"


@pytest.fixture(scope="module")
def local() -> Model:
    return nnattr.load(NAME)


@pytest.fixture(scope="module")
def task(local: Model) -> Task:
    return nnattr.tasks.ioi(local.tokenizer, n=3, seed=1)


def same(local: Model, remote: Model, task: Task) -> None:
    options: list[dict[str, Any]] = [
        {"unit": "component"},
        {"unit": "head"},
        {"unit": "neuron", "layers": [1]},
        {"unit": "accumulated", "norm": "each"},
    ]
    for option in options:
        here, there = (
            nnattr.direct_logit_attribution(model, task, **option) for model in (local, remote)
        )
        np.testing.assert_allclose(there.raw, here.raw, rtol=0, atol=1e-5)
        assert there.provenance.jobs == 1
        assert 0 < there.provenance.bytes_received < 20_000
    prompts = list(task.clean)
    here, there = (nnattr.logit_lens(model, prompts, positions="each") for model in (local, remote))
    np.testing.assert_allclose(there.data["probability"], here.data["probability"], atol=1e-5)
    assert there.data["token"].equals(here.data["token"])
    assert nnattr.generate(remote, prompts, max_new_tokens=4) == nnattr.generate(
        local, prompts, max_new_tokens=4
    )
    answer = task.answers[0][0]
    left, right = (nnattr.inspect_prompt(m, prompts[0], answer) for m in (local, remote))
    assert str(left) == str(right)
    distances = [
        nnattr.compare_runs(m, prompts, list(task.corrupted)).data for m in (local, remote)
    ]
    np.testing.assert_allclose(distances[0]["kl"], distances[1]["kl"], atol=1e-6)


def test_in_the_models_process(server: Server, local: Model, task: Task) -> None:
    same(local, nnattr.load(NAME, backend=server.url), task)


def test_in_a_sandbox(sandboxed_server: Server, local: Model, task: Task) -> None:
    same(local, nnattr.load(NAME, backend=sandboxed_server.url), task)
