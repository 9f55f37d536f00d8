"""Queries, keys, values, patterns and neurons: against plain attention patched by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnattr import LogitDiff, Scores, activation_patching, attribution_patching
from nnattr.errors import ArchError
from tests.methods.common import (
    assert_same,
    cells,
    even_ioi,
    pairs,
    ragged_tiny,
    raw_module,
    teaching,
    tiny,
)
from tests.oracles import inside
from tests.tiny import tiny_model

SITES: tuple[Any, ...] = ("q", "k", "v", "pattern", "neuron")
#: One projection for all, three, one by heads, and norms of queries and keys.
FAMILIES = ("gpt2", "llama", "gpt_neox", "qwen3", "olmo2", "gemma2")
AXES = {"q": "head", "pattern": "head", "k": "kv_head", "v": "kv_head", "neuron": "neuron"}


def unit_first(scores: Scores, site: str) -> np.ndarray:
    """Raw scores [example, layer, unit, pos]."""
    return scores.raw.transpose("example", "layer", AXES[site], "pos").to_numpy()


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_what_patching_by_hand_gives(family, site, direction):
    """The hand patches queries and keys after the rotary turn, and we do before it."""
    model, task = tiny(family), ragged_tiny(tiny(family))
    scores = activation_patching(
        model, task, LogitDiff(), site=site, positions="each", direction=direction
    )
    assert scores.provenance.arguments["engine"] == "suffix"
    found = unit_first(scores, site)
    for i, pair in enumerate(pairs(model, task, direction)):
        if site == "neuron" and i != 1:
            continue  # the shortest prompt is enough for hundreds of them
        mine = cells(task, i, "each")
        expected = inside.patch_every_cell(raw_module(model), pair, site, mine).numpy()
        assert_same(found[i][..., -len(mine) :], expected)


def test_dimensions_and_labels():
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    found = {
        site: activation_patching(model, task, LogitDiff(), site=site, positions="each").raw.dims
        for site in SITES
    }
    assert found["q"] == found["pattern"] == ("example", "layer", "head", "pos")
    assert found["k"] == found["v"] == ("example", "layer", "kv_head", "pos")
    assert found["neuron"] == ("example", "layer", "pos", "neuron")
    best = activation_patching(model, task, LogitDiff(), site="neuron").top(1)[0]
    layer, neuron = best.index
    assert best.label == f"L{layer}N{neuron}"


@pytest.mark.parametrize("site", ["k", "v"])
def test_a_key_value_head_is_patched_for_all_its_queries(site):
    """Grouped queries are full attention whose keys and values are the same within a group."""
    grouped, full = tiny("llama"), tiny_model("llama", num_key_value_heads=4)
    few, many = raw_module(grouped), raw_module(full)
    many.load_state_dict(
        {
            name: value.unflatten(0, (2, -1)).repeat_interleave(2, 0).flatten(0, 1)
            if ".k_proj." in name or ".v_proj." in name
            else value
            for name, value in few.state_dict().items()
        }
    )
    task = ragged_tiny(grouped)
    scores = activation_patching(grouped, task, LogitDiff(), site=site).raw.to_numpy()
    for i, pair in enumerate(pairs(full, task)):
        theirs = inside.activations(many, pair.source, site)
        everywhere = cells(task, i, "all")[0]
        with torch.no_grad():
            before = pair.measure(many)
            expected = [
                [
                    inside.patched(many, pair, site, at, (2 * kv, 2 * kv + 1), everywhere, theirs)
                    - before
                    for kv in range(2)
                ]
                for at in theirs
            ]
        assert_same(scores[i], np.array(expected))


@pytest.mark.parametrize("site", SITES)
def test_a_run_patched_with_itself_does_not_change(site):
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    options = {"site": site, "positions": [0], "normalized": False}
    same = activation_patching(model, task, LogitDiff(), **options)
    assert float(abs(same.raw).max()) == 0.0, "the prompts begin alike"


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_estimate_is_slope_times_change(family, site):
    """The slope by hand is that behind the rotary turn and in front of no norm."""
    if family == "qwen3" and site in ("q", "k"):
        pytest.skip("a norm of each head stands between: its slope is part of our estimate")
    model, task = tiny(family), ragged_tiny(tiny(family))
    found = unit_first(
        attribution_patching(model, task, LogitDiff(), site=site, positions="each"), site
    )
    for i, pair in enumerate(pairs(model, task)):
        mine = cells(task, i, "each")
        expected = inside.estimate_every_cell(raw_module(model), pair, site, mine).numpy()
        assert_same(found[i][..., -len(mine) :], expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox"])
def test_the_estimates_of_neurons_sum_to_the_mlps(family):
    """Their projection is linear. OPT's neurons have examples and positions on one axis."""
    model, task = tiny(family), ragged_tiny(tiny(family))
    options = {"positions": "each", "normalized": False}
    neurons, mlp = (
        attribution_patching(model, task, LogitDiff(), site=site, **options).raw
        for site in ("neuron", "mlp_out")
    )
    assert_same(neurons.sum("neuron", skipna=False), mlp)


def test_a_model_whose_plain_attention_is_another_is_refused():
    with pytest.raises(ArchError, match="eager"):
        activation_patching(
            tiny("falcon-serial"),
            ragged_tiny(tiny("falcon-serial")),
            LogitDiff(),
            site="pattern",
        )


def test_patterns_leave_the_model_as_it_was():
    model = teaching("teaching-gpt2")
    before = raw_module(model).config._attn_implementation
    activation_patching(model, even_ioi(model), LogitDiff(), site="pattern")
    assert raw_module(model).config._attn_implementation == before
