"""Every edge with all else frozen, against whole passes of the raw module with plain hooks."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task
from tests.methods.common import pairs, raw_module
from tests.oracles import edges as oracle
from tests.oracles.parts import all_edges
from tests.support.engine import pair, task
from tests.tiny import FAMILIES, tiny_model

#: Norms before, behind, and both; parallel; one norm each; residual multiplier; experts; grouped.
LAYOUTS = ("gpt2", "llama", "gemma2", "olmo2", "gpt_neox", "falcon-new", "granite", "mixtral")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def question(model: Model) -> Task:
    """Two pairs of unequal lengths, so that one is padded."""
    return task(model, pair(9, 4), pair(6, 3, shift=5))


def scored(model: Model, asked: Task, **options: Any) -> nnattr.EdgeScores:
    found = nnattr.path_patching(model, asked, LogitDiff(), normalized=False, **options)
    assert isinstance(found, nnattr.EdgeScores)
    return found


def assert_agrees(scores: nnattr.EdgeScores, model: Model, asked: Task, n: int, **options: Any):
    """A sample of edges against the oracle, all layers and ports in it."""
    module, raw = raw_module(model), scores.raw
    every = [
        (str(u), str(v))
        for u in raw["sender"].values
        for v in raw["receiver"].values
        if not np.isnan(raw.sel(sender=u, receiver=v)).all()
    ]
    some = every if len(every) <= n else random.Random(0).sample(every, n)
    size = float(np.nanmax(np.abs(raw)))
    assert size > 1e-3, "the control: there is an effect"
    for example, one in enumerate(pairs(model, asked, **options)):
        theirs = oracle.every_edge(module, one, some)
        for (sender, receiver), value in theirs.items():
            ours = float(raw.sel(example=example, sender=sender, receiver=receiver))
            gap = abs(ours - value)
            assert gap <= TOLERANCE * max(1.0, size), (sender, receiver, ours, value)


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_of_every_family(family):
    model = tiny_model(family)
    asked = question(model)
    scores = scored(model, asked, receivers="all")
    assert scores.provenance.arguments["engine"] == "suffix"
    expected = set(all_edges(raw_module(model)))
    there = {
        (str(u), str(v))
        for u in scores.raw["sender"].values
        for v in scores.raw["receiver"].values
        if not np.isnan(scores.raw.sel(sender=u, receiver=v)).all()
    }
    assert there == expected
    assert_agrees(scores, model, asked, 24)


@pytest.mark.parametrize("port", ["k", "v"])
def test_one_receiver_in_the_last_layer_is_not_taken_for_another_by_full_passes(port):
    """Its positions change before the last one, where alone its rows are wanted."""
    model = tiny_model("llama")
    last = f"L{model.n_layers - 1}KV0.{port}"
    asked = task(model, pair(9, 3), pair(9, 4, shift=5))
    scores = scored(model, asked, receivers=last)
    assert scores.provenance.arguments["engine"] == "suffix", scores.provenance.fell_back
    assert_agrees(scores, model, asked, 12)
