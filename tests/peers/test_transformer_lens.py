"""TransformerLens 4.3 as a peer: its bridge on the same weights, its `patching` module.

The bridge is used as it boots, without compatibility mode: that would fold norms and centre
weights, which leaves the logits alone but not the activations. Tokens are passed, not strings, so
both see the same BOS.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nnattr import (
    LogitDiff,
    Model,
    Task,
    activation_patching,
    attention_patterns,
    attribution_patching,
    capture,
)
from tests.methods.common import (
    TEACHING,
    assert_far,
    assert_same,
    even_ioi,
    first_difference,
    raw_module,
    stories,
    teaching,
)
from tests.support.paths import needs_stories
from tests.support.peers import bridge, difference

patching = pytest.importorskip("transformer_lens.patching", reason="needs transformer-lens")

NAMES = [*TEACHING, pytest.param("stories260K", marks=needs_stories)]
SWEEPS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "resid_mid": patching.get_act_patch_resid_mid,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
}


def ours(name: str) -> tuple[Model, Task]:
    """Our view, and prompts of one length (TransformerLens gets no padding)."""
    if name in TEACHING:
        model = teaching(name)
        return model, even_ioi(model, 2)
    model = stories()
    story = "Once upon a time, there was a little child named {}. One day,"
    pairs = [("Lily", "Timmy"), ("Timmy", "Lily")]
    clean, corrupted = zip(*pairs, strict=True)
    return model, Task.from_pairs(
        [story.format(one) for one in clean],
        [story.format(one) for one in corrupted],
        [f" {one}" for one in clean],
        [f" {one}" for one in corrupted],
        tokenizer=model.tokenizer,
    )


def theirs(name: str, task: Task, sweep: Any, direction: str, **options: Any) -> np.ndarray:
    """TransformerLens's change of the metric, [..., example]."""
    base, source = task.corrupted_tokens.ids, task.clean_tokens.ids
    if direction == "noising":
        base, source = source, base
    with torch.no_grad():
        _, cache = bridge(name).run_with_cache(source)
        found = sweep(
            bridge(name), base, cache, difference(task), reduce="none", baseline=True, **options
        )
    return (found.values - found.baseline).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_the_bridge_runs_the_same_model(name: str) -> None:
    """What the other tests rest on: equal logits and equal z."""
    model, task = ours(name)
    ids = task.clean_tokens.ids
    assert bool(task.clean_tokens.mask.all())
    with torch.no_grad():
        logits, cache = bridge(name).run_with_cache(ids)
        plain = raw_module(model)(ids).logits
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-4)
    assert cache["blocks.0.attn.hook_z"].shape[2] == model.n_heads


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", NAMES)
def test_heads_at_all_positions(name: str, direction: Any) -> None:
    model, task = ours(name)
    scores = activation_patching(model, task, LogitDiff(), site="z", direction=direction)
    sweep = patching.get_act_patch_attn_head_out_all_pos
    expected = np.moveaxis(theirs(name, task, sweep, direction), -1, 0)
    assert_same(scores.raw, expected, 1e-4)
    assert_far(scores.raw, expected[..., ::-1])


@pytest.mark.parametrize("site", ["q", "k", "v", "pattern"])
@pytest.mark.parametrize("name", TEACHING)
def test_inside_attention(name: str, site: Any) -> None:
    """Queries, keys and values before any rotary turn, and patterns, at all positions."""
    model, task = ours(name)
    kv_heads = model.n_kv_heads if site in ("k", "v") else model.n_heads
    cells = [(layer, head) for layer in range(model.n_layers) for head in range(kv_heads)]
    setter = {"pattern": patching.layer_head_pattern_patch_setter}.get(
        site, patching.layer_head_vector_patch_setter
    )
    expected = theirs(
        name,
        task,
        patching.generic_activation_patch,
        "denoising",
        patch_setter=setter,
        activation_name=site,
        index_df=pd.DataFrame(cells, columns=["layer", "head"]),
    )
    scores = activation_patching(model, task, LogitDiff(), site=site)
    assert_same(
        scores.raw.to_numpy(),
        np.moveaxis(expected.reshape(model.n_layers, kv_heads, -1), -1, 0),
        1e-4,
    )


@pytest.mark.parametrize("name", TEACHING)
def test_heads_by_position(name: str) -> None:
    """At the first token that differs, the one after it and the last one."""
    model, task = ours(name)
    first = min(first_difference(task, i) for i in range(len(task)))
    chosen = [first, first + 1, task.width - 1]
    rows = [
        (layer, pos, head)
        for layer in range(model.n_layers)
        for pos in chosen
        for head in range(model.n_heads)
    ]
    expected = theirs(
        name,
        task,
        patching.generic_activation_patch,
        "denoising",
        patch_setter=patching.layer_pos_head_vector_patch_setter,
        activation_name="z",
        index_df=pd.DataFrame(rows, columns=["layer", "pos", "head"]),
    )
    shape = (model.n_layers, len(chosen), model.n_heads, len(task))
    scores = activation_patching(model, task, LogitDiff(), site="z", positions="each")
    assert_same(
        scores.raw.sel(pos=chosen).transpose("layer", "pos", "head", "example"),
        expected.reshape(shape),
        1e-4,
    )


@pytest.mark.parametrize("site", SWEEPS)
@pytest.mark.parametrize("name", TEACHING)
def test_layers_by_position(name: str, site: Any) -> None:
    model, task = ours(name)
    scores = activation_patching(model, task, LogitDiff(), site=site, positions="each")
    expected = np.moveaxis(theirs(name, task, SWEEPS[site], "denoising"), -1, 0)
    assert_same(scores.raw, expected, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_attribution_patching(name: str) -> None:
    """Its node attribution has our sign: the change of the metric towards the clean run."""
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    model, task = ours(name)
    for i, one in enumerate(task):
        metric = difference(one)
        found = attribution_patch(
            bridge(name),
            one.clean_tokens.ids,
            one.corrupted_tokens.ids,
            lambda logits, metric=metric: metric(logits).sum(),
        )
        heads = np.zeros((model.n_layers, model.n_heads, task.width))
        mlps = np.zeros((model.n_layers, task.width))
        for node, score in found.node_scores.items():
            if node.kind == "attn_head_out":
                heads[node.layer, node.head, node.position] = score
            elif node.kind == "mlp_out":
                mlps[node.layer, node.position] = score
        for site, expected in (("z", heads), ("mlp_out", mlps)):
            options: Any = {"site": site, "positions": "each"}
            scores = attribution_patching(model, task, LogitDiff(), **options)
            assert_same(scores.raw[i], expected, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_attention_patterns(name: str) -> None:
    model, task = ours(name)
    with torch.no_grad():
        _, cache = bridge(name).run_with_cache(task.clean_tokens.ids)
    found = attention_patterns(model, task)
    for layer in range(model.n_layers):
        expected = cache[f"blocks.{layer}.attn.hook_pattern"]
        heads = found.values.sel(head=found.values["layer"] == layer)
        assert_same(heads, expected, 1e-5)
        assert_far(heads, expected.flip(1))


@pytest.mark.parametrize("name", NAMES)
def test_captured_activations(name: str) -> None:
    """Queries and keys of rotary models are read before the turn, as TransformerLens's are."""
    model, task = ours(name)
    with torch.no_grad():
        _, cache = bridge(name).run_with_cache(task.clean_tokens.ids)
    hooks = {site: f"attn.hook_{site}" for site in ("q", "k", "v", "z")}
    hooks |= {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out"}
    found = capture(model, task, list(hooks))
    for site, hook in hooks.items():
        for layer in range(model.n_layers):
            expected = cache[f"blocks.{layer}.{hook}"]
            assert_same(found[site].sel(layer=layer), expected, 1e-4)
