"""What somebody did to a module is part of the model: hooks, adapters, forwards, other classes.

The oracle's hooks come after the user's, as those of a user would who did the same by hand. Every
kind moves some score by far more than rounding: each test says so.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task, activation_patching, attribution_patching
from nnattr.errors import ArchError
from tests.methods.common import (
    assert_same,
    expected,
    pairs,
    ragged_tiny,
    raw_module,
    tiny,
)
from tests.support.engine import compared
from tests.support.users_modules import DONE
from tests.tiny import tiny_module, tiny_tokenizer

SITES = ("z", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")


def changed(done: str) -> Model:
    module = tiny_module("llama")
    DONE[done](module)
    return nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")


@cache
def plain_scores(site: Any) -> Any:
    model = tiny("llama")
    return activation_patching(model, ragged_tiny(model), LogitDiff(), site=site, normalized=False)


def sites_of(done: str) -> list[Any]:
    """The sites of which the oracle knows: it edits resid_mid in front of attention's end."""
    return [site for site in SITES if (done, site) != ("attention scaled", "resid_mid")]


def baselines(model: Model, task: Task) -> list[float]:
    """The metric of every clean prompt by itself."""
    with torch.no_grad():
        return [float(pair.measure(raw_module(model), pair.source)) for pair in pairs(model, task)]


@pytest.mark.parametrize("engine", ["suffix", "full"])
@pytest.mark.parametrize("done", DONE)
def test_patching_is_that_of_plain_hooks(done: str, engine: Any) -> None:
    model = changed(done)
    task = ragged_tiny(model)
    for site in sites_of(done):
        found = activation_patching(
            model, task, LogitDiff(), site=site, normalized=False, engine=engine
        )
        assert_same(found.raw, expected("activation", model, task, site=site))
        assert_same(found.baselines.sel(run="clean"), baselines(model, task))
    found = activation_patching(model, task, LogitDiff(), normalized=False, engine=engine)
    plain = plain_scores("z")
    moved = abs(found.raw - plain.raw).max() + abs(found.baselines - plain.baselines).max()
    assert float(moved) > 0.05


def test_a_hook_that_writes_into_what_is_differentiated() -> None:
    model = changed("layer fed in place")
    task = ragged_tiny(model)
    with pytest.raises(ArchError, match="writes into an activation"):
        attribution_patching(model, task, LogitDiff(), site="resid_post")
    found = attribution_patching(model, task, LogitDiff(), site="mlp_out", normalized=False)
    assert_same(found.raw, expected("attribution", model, task, site="mlp_out"))


@pytest.mark.parametrize("done", [done for done in DONE if done != "layer fed in place"])
def test_gradients_are_those_of_plain_hooks(done: str) -> None:
    model = changed(done)
    task = ragged_tiny(model)
    for site in sites_of(done):
        found = attribution_patching(model, task, LogitDiff(), site=site, normalized=False)
        assert_same(found.raw, expected("attribution", model, task, site=site))
        assert_same(found.baselines.sel(run="clean"), baselines(model, task))


@pytest.mark.parametrize("done", ["down-projection scaled", "MLP bent", "output projection bent"])
def test_the_engine_gives_what_full_passes_give_inside_modules(done: str) -> None:
    model = changed(done)
    for site in ("neuron", "q", "v"):
        assert compared(model, ragged_tiny(model), site=site)


@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_layers_that_are_skipped_are_not_hooked_twice(layers: Any, monkeypatch: Any) -> None:
    """Rows that enter above a layer whose hook changes what it returns, or the next is given."""
    for done in ("layer scaled", "layer fed", "MLP bent"):
        model = changed(done)
        task = ragged_tiny(model)
        monkeypatch.setattr("nnattr.jobs.split._first_size", lambda *_: 1)  # a job for each layer
        found = activation_patching(model, task, LogitDiff(), normalized=False)
        assert found.provenance.arguments["engine"] == "suffix"
        wanted = expected("activation", model, task)
        assert_same(found.raw[:, layers], wanted[:, layers])
