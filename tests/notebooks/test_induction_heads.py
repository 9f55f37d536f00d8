"""Finding induction heads: the sections of a notebook on a toy, by public calls on ours.

Where the notebook computes something by hand from a cache, so does the test, and the public call
must give it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr.results import HeadScores, Patterns
from tests.methods.common import TEACHING, teaching

LENGTH = 25


def text(model: Any) -> str:
    """A text in the model's words."""
    return nnattr.tasks.ioi(model.tokenizer, n=1, seed=3).clean[0]


@cache
def repeated(name: str) -> HeadScores:
    """Ten sequences of random tokens, each twice."""
    return nnattr.detect_heads(teaching(name), n=10, length=LENGTH)


@cache
def looks(name: str) -> Patterns:
    """What all heads look at on the same tokens."""
    return nnattr.attention_patterns(teaching(name), repeated(name).tokens)


def test_caching_and_verifying_activations() -> None:
    """Section "Caching all activations": the pattern is the softmax of queries on keys."""
    model = teaching("teaching-gpt2")
    found = nnattr.capture(model, text(model), ["q", "k", "pattern"], layers=0)
    q, k = (torch.tensor(found[site].to_numpy()[0, 0]) for site in ("q", "k"))
    scores = torch.einsum("qhd,khd->hqk", q, k) / model.d_head**0.5
    later = torch.ones(scores.shape[-2:]).triu(1).bool()
    expected = scores.masked_fill(later, -torch.inf).softmax(-1)
    np.testing.assert_allclose(found["pattern"][0, 0], expected, rtol=0, atol=1e-5)


def test_everything_that_the_cache_lists() -> None:
    """Section "K-composition circuit" prints the cache's keys; these are ours."""
    model = teaching("teaching-llama")
    sites = ["resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "neuron", "mlp_out"]
    found = nnattr.capture(model, text(model), [*sites, "resid_post", "pattern"])
    sizes = {site: dict(values.sizes) for site, values in found.items()}
    assert sizes["q"]["head"] == sizes["z"]["head"] == sizes["pattern"]["head"] == model.n_heads
    assert sizes["k"]["kv_head"] == sizes["v"]["kv_head"] == model.n_kv_heads
    whole = found["resid_pre"] + found["attn_out"] + found["mlp_out"]
    np.testing.assert_allclose(whole, found["resid_post"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TEACHING)
def test_visualizing_heads(name: str, tmp_path: Path) -> None:
    """Sections "Visualizing attention heads" and "visualize attention patterns"."""
    model = teaching(name)
    layer = [(0, head) for head in range(model.n_heads)]
    patterns = nnattr.attention_patterns(model, text(model), layer)
    assert len(patterns.plot().data) == model.n_heads
    page = patterns.to_html(tmp_path / "heads.html").read_text(encoding="utf-8")
    assert f'"L0H{model.n_heads - 1}"' in page


@pytest.mark.parametrize("name", TEACHING)
def test_detectors_of_current_previous_and_first_token_heads(name: str) -> None:
    """Section "write your own detectors", on one text, with its thresholds."""
    model = teaching(name)
    patterns = nnattr.attention_patterns(model, text(model))
    found = nnattr.detect_heads(model, text(model))
    for kind, threshold, score in (
        ("current", 0.3, lambda a: np.diagonal(a).mean()),
        ("previous", 0.35, lambda a: np.diagonal(a, -1).mean()),
        ("first", 0.7, lambda a: a[:, 0].mean()),
    ):
        by_hand = {head: score(patterns.of(*head).to_numpy()) for head in patterns.heads}
        listed = {head for head, value in by_hand.items() if value > threshold}
        assert set(found.heads(kind).indices) == listed
        for (layer, head), value in by_hand.items():
            own = float(found.mean().sel(kind=kind, layer=layer, head=head))
            assert own == pytest.approx(value, abs=1e-5)
    assert found.heads("previous")


@pytest.mark.parametrize("name", TEACHING)
def test_the_loss_falls_on_the_second_copy(name: str) -> None:
    """Section "plot per-token loss on repeated sequence" (there -13.9 and -3.5)."""
    found = repeated(name)
    first, second = found.halves()
    assert second < 0.2 * first
    assert len(found.plot_loss().data) == 3
    for row in found.tokens.strings:
        assert row[-2 * LENGTH : -LENGTH] == row[-LENGTH:]


@pytest.mark.parametrize("name", TEACHING)
def test_the_heads_that_look_after_the_first_copy(name: str) -> None:
    """Section "Finding induction heads": their stripe, in the patterns of the repeated tokens."""
    found, patterns = repeated(name), looks(name)
    best = found.heads("induction")[0].index
    one = patterns.of(*best, example=1).to_numpy()
    stripe = np.diagonal(one, offset=-LENGTH + 1)
    assert stripe[-LENGTH:].mean() > 0.5
    assert np.diagonal(one, offset=-LENGTH - 1).mean() < 0.1


@pytest.mark.parametrize("name", TEACHING)
def test_induction_scores_over_a_batch_as_a_heat_map(name: str) -> None:
    """Section "Calculate induction scores with hooks", with the notebook's own reduction.

    Its diagonal counts two queries more than have an earlier occurrence (the last of the first copy
    and the first of the second, or the token before); they have small scores.
    """
    model = teaching(name)
    found = repeated(name)
    values = looks(name).values.to_numpy()
    diagonal = np.diagonal(values, offset=-LENGTH + 1, axis1=-2, axis2=-1)
    by_hand = diagonal.mean(-1).reshape(10, model.n_layers, -1)
    queries = diagonal.shape[-1]
    own = found.scores.sel(kind="induction").to_numpy()
    assert np.abs(own - by_hand).max() <= 2 / queries + 0.02
    (map_of_all,) = found.plot("induction").data
    np.testing.assert_allclose(map_of_all.z, found.mean().sel(kind="induction"))
    spread = found.stderr().sel(kind="induction")
    assert float(spread.max()) < 0.05
