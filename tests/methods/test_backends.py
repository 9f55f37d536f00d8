"""The backend changes where a question is answered, never the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnattr
from nnattr import LogitDiff
from nnattr.errors import BackendError, MetricError
from nnattr.teaching import folder
from tests.methods.common import (
    METHODS,
    SITES,
    TEACHING,
    assert_far,
    assert_same,
    even_ioi,
    ragged_ioi,
    stories,
    teaching,
)
from tests.support.metrics import entropy
from tests.support.paths import STORIES, needs_stories

NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", TEACHING)
def test_simulated_is_local(name: str, site: Any, method: str) -> None:
    task = ragged_ioi(teaching(name))
    options: dict[str, Any] = {"site": site, "positions": "S2", "direction": "noising"}
    here, there = (
        METHODS[method](teaching(name, backend), task, LogitDiff(), **options)
        for backend in ("local", "simulated")
    )
    assert_same(there.raw, here.raw, 1e-6)
    assert_same(there.baselines, here.baselines, 1e-6)
    assert there.raw.coords.identical(here.raw.coords)
    assert (there.provenance.backend, there.provenance.jobs) == ("simulated", 1)
    assert (here.provenance.backend, here.provenance.jobs) == ("local", 0)
    assert there.provenance.bytes_sent > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_metric_of_ones_own_travels(method: str) -> None:
    task = even_ioi(teaching("teaching-gpt2"))
    here, there = (
        METHODS[method](teaching("teaching-gpt2", backend), task, entropy, positions="each").raw
        for backend in ("local", "simulated")
    )
    assert_same(there, here, 1e-6)


def test_the_request_grows_with_the_prompts_only() -> None:
    """Code and tokens travel, never weights or activations."""
    model = teaching("teaching-gpt2", "simulated")
    one, three = (
        nnattr.attribution_patching(model, even_ioi(model, n), LogitDiff()).provenance.bytes_sent
        for n in (1, 3)
    )
    assert 0 < one < 50_000
    assert three - one < 5_000


@pytest.mark.parametrize("method", METHODS)
def test_no_server_is_said_so_and_no_weights_are_loaded(method: str) -> None:
    model = nnattr.load(folder("teaching-gpt2"), backend=NOBODY)
    assert {str(p.device) for p in model.nn._module.parameters()} == {"meta"}
    task = even_ioi(model)
    with pytest.raises(BackendError, match=r"127\.0\.0\.1:9"):
        METHODS[method](model, task, LogitDiff())
    assert {str(p.device) for p in model.nn._module.parameters()} == {"meta"}


def test_a_key_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = nnattr.NDIF(host=NOBODY, api_key="very-secret-key")
    model = nnattr.load(folder("teaching-gpt2"), backend=backend)
    with pytest.raises(BackendError) as caught:
        nnattr.activation_patching(model, even_ioi(model), LogitDiff())
    seen = f"{caught.value} {model!r} {backend!r} {model.backend.name}"
    assert "very-secret-key" not in seen
    assert NOBODY in seen


def fails(logits: Any, batch: Any) -> Any:
    raise RuntimeError("this metric gave up")


@pytest.mark.parametrize("backend", ["local", "simulated"])
@pytest.mark.parametrize("method", METHODS)
def test_a_failure_inside_a_job_is_ours_and_says_what_happened(method: str, backend: str) -> None:
    model = teaching("teaching-llama", backend)
    with pytest.raises(MetricError, match=r"RuntimeError: this metric gave up, in line \d+: raise"):
        METHODS[method](model, even_ioi(model), fails)


@needs_stories
@pytest.mark.parametrize("method", METHODS)
def test_simulated_is_local_on_stories(method: str) -> None:
    simulated = nnattr.load(STORIES, backend="simulated", device="cpu")
    task = nnattr.Task.from_pairs(
        ["Once upon a time, there was a little child named Lily. One day,"],
        ["Once upon a time, there was a little child named Timmy. One day,"],
        [" Lily"],
        [" Timmy"],
        tokenizer=simulated.tokenizer,
    )
    here, there = (
        METHODS[method](model, task, LogitDiff(), positions="each").raw
        for model in (stories(), simulated)
    )
    assert_same(there, here, 1e-6)
    assert_far(here, np.zeros_like(here) + float(here.mean()))
