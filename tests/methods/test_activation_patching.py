"""Activation patching equals one plain forward pass per cell, example and head.

The oracle (`tests/oracles/patching.py`) never pads, never batches and never meets nnsight, so these
tests hold left padding, positions, chunks, sites and labels at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnattr import LogitDiff, Task, activation_patching
from nnattr.errors import MetricError
from tests.methods.common import (
    METHODS,
    SITES,
    TEACHING,
    Forwards,
    assert_far,
    assert_same,
    cells,
    even_ioi,
    expected,
    limit_tokens,
    pairs,
    ragged_ioi,
    ragged_tiny,
    raw_module,
    teaching,
    tiny,
)
from tests.oracles import patching
from tests.oracles.maps import map_of
from tests.support.families import families
from tests.support.metrics import METRICS, as_list, one_number, per_token
from tests.tiny import tiny_model

ENGINES = ("suffix", "full")
AB = ("w50", "w60")


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", TEACHING)
def test_equals_one_forward_per_cell(name: str, site: Any, direction: Any) -> None:
    model = teaching(name)
    task = ragged_ioi(model)
    scores = activation_patching(model, task, LogitDiff(), site=site, direction=direction)
    assert_same(scores.raw, expected("activation", model, task, site=site, direction=direction))


@pytest.mark.parametrize("positions", ["all", "each", "last", "where", 2, -3, [0, -1], [3]])
@pytest.mark.parametrize("site", ["z", "resid_mid"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions_mean_the_prompts_own_tokens(family: str, site: Any, positions: Any) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    scores = activation_patching(model, task, LogitDiff(), site=site, positions=positions)
    assert_same(scores.raw, expected("activation", model, task, site=site, positions=positions))


@pytest.mark.parametrize("name", TEACHING)
def test_each_position_on_a_trained_model(name: str) -> None:
    model = teaching(name)
    task = ragged_ioi(model)
    scores = activation_patching(model, task, LogitDiff(), site="resid_pre", positions="each")
    theirs = expected("activation", model, task, site="resid_pre", positions="each")
    assert_same(scores.raw, theirs)
    assert list(np.isnan(scores.raw[:, 0]).sum("pos")) == task.clean_tokens.padding


@pytest.mark.parametrize("family", families())
def test_every_family_and_site(family: str) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    parallel = map_of(raw_module(model)).parallel
    for site in [site for site in SITES if not (parallel and site == "resid_mid")]:
        theirs = expected("activation", model, task, site=site)
        for engine in ENGINES:
            scores = activation_patching(model, task, LogitDiff(), site=site, engine=engine)
            assert_same(scores.raw, theirs, 2e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "gpt_neo"])
def test_attention_that_sees_less_than_the_prompt(family: str, method: str) -> None:
    """Sliding windows of 3, in prompts whose runs part late: most of the cache is out of sight."""
    window = {"window_size": 3} if family == "gpt_neo" else {"sliding_window": 3}
    model, wide = tiny_model(family, **window), tiny(family)
    same = [f"w{i}" for i in range(30, 40)]
    prompts = [" ".join([*same[shorter:], word, "w5 w6 w7"]) for shorter in (0, 3) for word in AB]
    task = Task.from_pairs(
        prompts[::2], prompts[1::2], ["w70", "w71"], ["w80", "w81"], tokenizer=model.tokenizer
    )
    for site, positions in (("z", "all"), ("mlp_out", "each")):
        options: dict[str, Any] = {"site": site, "positions": positions}
        scores = METHODS[method](model, task, LogitDiff(), **options)
        theirs = expected(method, model, task, **options)
        assert_same(scores.raw, theirs, 2e-5)
        assert_far(METHODS[method](wide, task, LogitDiff(), **options).raw, theirs)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", TEACHING)
def test_the_engine_that_computes_only_what_changes_is_the_one_tested(name: str, site: Any) -> None:
    """Otherwise the comparisons above would compare full passes with full passes."""
    model = teaching(name)
    task = ragged_ioi(model)
    used = [
        activation_patching(model, task, LogitDiff(), site=site, engine=engine).provenance.arguments
        for engine in ENGINES
    ]
    assert [arguments["engine"] for arguments in used] == list(ENGINES)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric(metric: str, direction: Any) -> None:
    model = tiny("llama")
    task = ragged_tiny(model)
    options = {"site": "attn_out", "positions": "each", "direction": direction}
    scores = activation_patching(model, task, METRICS[metric], **options)
    assert_same(scores.raw, expected("activation", model, task, metric=metric, **options))


@pytest.mark.parametrize("tokens", [7, 14])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("site", ["z", "resid_post"])
def test_chunks_change_nothing(
    site: Any, engine: Any, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    task = ragged_tiny(model)
    options: dict[str, Any] = {"site": site, "positions": "each", "engine": engine}
    with Forwards(model) as whole:
        at_once = activation_patching(model, task, LogitDiff(), **options)
    limit_tokens(monkeypatch, tokens)
    with Forwards(model) as parts:
        in_chunks = activation_patching(model, task, LogitDiff(), **options)
    assert len(parts.rows) > len(whole.rows)
    assert max(parts.tokens) <= tokens < max(whole.tokens)
    assert_same(in_chunks.raw, at_once.raw)
    assert_same(in_chunks.baselines, at_once.baselines)


def test_many_cells_are_rows_of_one_forward() -> None:
    model = tiny("gpt2")
    task = ragged_tiny(model)
    with Forwards(model) as seen:
        scores = activation_patching(model, task, LogitDiff(), positions="each")
    cells_in_all = scores.raw[0].size
    assert cells_in_all == model.n_layers * model.n_heads * task.width
    assert max(seen.rows) > len(task) * model.n_heads
    assert len(seen.rows) < cells_in_all / 4


@pytest.mark.parametrize("name", TEACHING)
def test_a_head_is_a_slice_of_the_projections_input(name: str) -> None:
    """The well-known mistake: slicing the projection's output, which mixes all heads."""
    model = teaching(name)
    task = even_ioi(model)
    ours = activation_patching(model, task, LogitDiff(), site="z").raw
    assert_same(ours, expected("activation", model, task, site="z"))
    mistaken = expected("activation", model, task, site="attn_out", split=model.n_heads)
    assert_far(ours, mistaken)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", TEACHING)
def test_baselines_are_those_of_the_bare_model(name: str, direction: Any) -> None:
    model = teaching(name)
    task = ragged_ioi(model)
    scores = activation_patching(model, task, LogitDiff(), site="attn_out", direction=direction)
    found = pairs(model, task, "noising")  # base is the clean run
    with torch.no_grad():
        clean = [float(pair.measure(raw_module(model))) for pair in found]
        corrupted = [float(pair.measure(raw_module(model), pair.source)) for pair in found]
    assert_same(scores.baselines, [clean, corrupted])
    assert list(scores.baselines["run"].values) == ["clean", "corrupted"]
    gap = np.mean(clean) - np.mean(corrupted)
    assert scores.scale == pytest.approx(gap if direction == "denoising" else -gap, rel=1e-4)


def test_normalised_scores_are_raw_over_the_mean_gap() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    scores = activation_patching(model, task, LogitDiff())
    plain = activation_patching(model, task, LogitDiff(), normalized=False)
    gap = scores.baselines.sel(run="clean") - scores.baselines.sel(run="corrupted")
    assert abs(float(gap.mean())) > 1e-3
    np.testing.assert_array_equal(scores.raw, plain.raw)
    np.testing.assert_array_equal(plain.values, plain.raw)
    np.testing.assert_allclose(scores.values, scores.raw / float(gap.mean()), rtol=1e-6)


def test_scores_are_labelled() -> None:
    model = tiny("llama")
    task = ragged_tiny(model)
    by_head = activation_patching(model, task, LogitDiff(), positions="each")
    assert by_head.raw.dims == ("example", "layer", "head", "pos")
    assert by_head.raw.shape == (3, 3, 4, 7)
    assert list(by_head.raw["token"].values) == list(task.labels)
    by_layer = activation_patching(model, task, LogitDiff(), site="mlp_out")
    assert by_layer.raw.dims == ("example", "layer")
    provenance = by_layer.provenance
    assert (provenance.method, provenance.metric) == ("activation_patching", "LogitDiff()")
    assert provenance.arguments["site"] == "mlp_out"
    assert provenance.task_hash == task.hash


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("gpt2")
    task = ragged_tiny(model)
    ids = torch.tensor([[3, 4, 5, 6]])
    before = patching.logits_of(raw_module(model), ids)
    activation_patching(model, task, LogitDiff(), site="resid_mid")
    hooks = [h for m in raw_module(model).modules() for h in m._forward_pre_hooks.values()]
    torch.testing.assert_close(patching.logits_of(raw_module(model), ids), before, rtol=0, atol=0)
    activation_patching(model, task, LogitDiff(), site="resid_mid")
    again = [h for m in raw_module(model).modules() for h in m._forward_pre_hooks.values()]
    assert len(again) == len(hooks)


@pytest.mark.parametrize("metric", [one_number, per_token, as_list])
def test_a_metric_that_is_not_one_number_per_example_is_refused(metric: Any) -> None:
    model = tiny("gpt2")
    with pytest.raises(MetricError, match=rf"{metric.__name__}.*one number for each of 3"):
        activation_patching(model, ragged_tiny(model), metric)


def test_the_oracle_itself_finds_an_edit_at_every_site() -> None:
    """A control of the oracle: a change anywhere moves the logits, no change moves nothing."""
    module = raw_module(tiny("llama"))
    ids = torch.tensor([[3, 4, 5, 6]])
    plain = patching.logits_of(module, ids)
    for site in SITES:
        with patching.passed_through(module, site, 1, lambda own: own.clone()):
            torch.testing.assert_close(patching.logits_of(module, ids), plain)
        with patching.passed_through(module, site, 1, lambda own: own + 1.0):
            assert (patching.logits_of(module, ids) - plain).abs().max() > 1e-2


def test_a_cell_is_named_by_the_tasks_own_positions() -> None:
    """A control of the oracle's positions: three prompts, three different columns."""
    task = ragged_tiny(tiny("llama"))
    assert [cells(task, i, "where") for i in range(3)] == [[[1, 2]], [[3]], [[0, 3, 5]]]
    assert [cells(task, i, -2) for i in range(3)] == [[[4]], [[2]], [[5]]]
