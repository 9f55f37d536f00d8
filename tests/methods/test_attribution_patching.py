"""Attribution patching equals two plain forwards and a backward, one example at a time.

And it estimates what activation patching measures: same sign, exact where the model is linear, and
with an error that falls with the square of the difference between the runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import KL, LogitDiff, Model, Task, activation_patching
from nnattr import attribution_patching as attribute
from nnattr.errors import ArchError, MetricError
from tests.methods.common import (
    SITES,
    TEACHING,
    Forwards,
    assert_far,
    assert_same,
    even_ioi,
    expected,
    limit_tokens,
    ragged_ioi,
    ragged_tiny,
    raw_module,
    teaching,
    tiny,
)
from tests.oracles.maps import map_of
from tests.support.families import families
from tests.support.metrics import METRICS, as_list, one_number, per_token
from tests.tiny import tiny_module, tiny_tokenizer


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", TEACHING)
def test_equals_two_forwards_and_a_backward(name: str, site: Any, direction: Any) -> None:
    model = teaching(name)
    task = ragged_ioi(model)
    scores = attribute(model, task, LogitDiff(), site=site, direction=direction)
    assert_same(scores.raw, expected("attribution", model, task, site=site, direction=direction))


@pytest.mark.parametrize("positions", ["all", "each", "last", "where", 2, -3, [0, -1], [3]])
@pytest.mark.parametrize("site", ["z", "resid_mid"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions_mean_the_prompts_own_tokens(family: str, site: Any, positions: Any) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    scores = attribute(model, task, LogitDiff(), site=site, positions=positions)
    assert_same(scores.raw, expected("attribution", model, task, site=site, positions=positions))


@pytest.mark.parametrize("family", families())
def test_every_family_and_site(family: str) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    parallel = map_of(raw_module(model)).parallel
    for site in [site for site in SITES if not (parallel and site == "resid_mid")]:
        scores = attribute(model, task, LogitDiff(), site=site)
        assert_same(scores.raw, expected("attribution", model, task, site=site), 2e-5)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric(metric: str, direction: Any) -> None:
    if (metric, direction) == ("KL", "noising"):
        pytest.skip("all 0: see test_kl_at_the_clean_run_is_flat")
    model = tiny("llama")
    task = ragged_tiny(model)
    options = {"site": "attn_out", "positions": "each", "direction": direction}
    scores = attribute(model, task, METRICS[metric], **options)
    assert_same(scores.raw, expected("attribution", model, task, metric=metric, **options))


def test_kl_at_the_clean_run_is_flat() -> None:
    """KL to the clean run has its minimum there, so noising estimates are 0; exact ones are not."""
    model = tiny("llama")
    task = ragged_tiny(model)
    flat = attribute(model, task, KL(), direction="noising")
    assert float(abs(flat.raw).max()) < 1e-6
    assert float(abs(attribute(model, task, KL(), direction="denoising").raw).max()) > 1e-2
    assert float(activation_patching(model, task, KL(), direction="noising").raw.max()) > 1e-2


@pytest.mark.parametrize("tokens", [7, 14])
def test_chunks_change_nothing(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt2")
    task = ragged_tiny(model)
    with Forwards(model) as whole:
        at_once = attribute(model, task, LogitDiff(), positions="each")
    limit_tokens(monkeypatch, tokens)
    with Forwards(model) as parts:
        in_chunks = attribute(model, task, LogitDiff(), positions="each")
    assert len(parts.rows) > len(whole.rows)
    assert max(parts.tokens) <= tokens < max(whole.tokens)
    assert_same(in_chunks.raw, at_once.raw)
    assert_same(in_chunks.baselines, at_once.baselines)


def test_costs_a_few_forwards_and_leaves_nothing_behind() -> None:
    """However many cells there are."""
    model = tiny("gpt2")
    task = ragged_tiny(model)
    with Forwards(model) as seen:
        attribute(model, task, LogitDiff(), site="mlp_out")
    with Forwards(model) as more:
        attribute(model, task, LogitDiff(), site="z", positions="each")
    assert more.rows == seen.rows
    assert sum(more.tokens) <= 3 * len(task) * task.width
    for parameter in raw_module(model).parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_a_model_with_trainable_weights_gives_the_same_and_collects_no_gradients() -> None:
    frozen = tiny("gpt2")
    module = tiny_module("gpt2").requires_grad_(True)
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    task = ragged_tiny(model)
    ours = attribute(model, task, LogitDiff()).raw
    assert_same(ours, attribute(frozen, task, LogitDiff()).raw)
    assert all(parameter.grad is None for parameter in module.parameters())


# --- what the estimate is an estimate of ----------------------------------------------------


def nearby(family: str, step: float) -> tuple[Model, Task]:
    """A model and a task whose runs differ by ``step`` in the embedding of one word."""
    module = tiny_module(family, tie_word_embeddings=False).double()
    weight = module.get_input_embeddings().weight
    direction = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(1)).double()
    weight[40] = weight[30] + step * direction
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    task = Task.from_pairs(
        ["w3 w4 w30 w6 w7 w8"],
        ["w3 w4 w40 w6 w7 w8"],
        ["w70"],
        ["w80"],
        tokenizer=model.tokenizer,
    )
    return model, task


def difference(logits: Any, batch: Any) -> Any:
    """The logit difference in the model's own float64."""
    return logits[:, -1, 70] - logits[:, -1, 80]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_is_the_first_order_of_exact_patching(family: str, site: Any, direction: Any) -> None:
    """Ten times closer runs, a hundred times smaller error: the sign and the size are right."""
    errors = []
    for step in (0.01, 0.001):
        model, task = nearby(family, step)
        exact, estimate = (
            method(
                model, task, difference, site=site, direction=direction, normalized=False
            ).raw.to_numpy()
            for method in (activation_patching, attribute)
        )
        errors.append(np.abs(exact - estimate).max())
        size = np.abs(exact).max()
        assert size > 0.01 * step, "no effect anywhere"
    assert errors[1] < 0.05 * size
    assert errors[1] < errors[0] / 30


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_is_exact_on_a_linear_path(direction: Any) -> None:
    """Without the final norm the last layer's MLP and residual stream enter the logits linearly."""
    module = tiny_module("gpt2")
    module.transformer.ln_f = torch.nn.Identity()
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    task = ragged_tiny(model)
    for site in ("mlp_out", "resid_post"):
        options = {"site": site, "positions": "each", "direction": direction}
        exact = activation_patching(model, task, LogitDiff(), **options).raw
        estimate = attribute(model, task, LogitDiff(), **options).raw
        assert_same(estimate[:, -1], exact[:, -1])
        assert_far(estimate[:, 0], exact[:, 0])


@pytest.mark.parametrize("site", ["z", "mlp_out"])
def test_positions_add_up(site: Any) -> None:
    """A first-order estimate is linear in the cell: 'each' sums to 'all'. Exact scores do not."""
    model = teaching("teaching-llama")
    task = ragged_ioi(model)
    whole = attribute(model, task, LogitDiff(), site=site).raw
    each = attribute(model, task, LogitDiff(), site=site, positions="each").raw
    assert_same(each.sum("pos"), whole)
    exact = activation_patching(model, task, LogitDiff(), site=site).raw
    exact_each = activation_patching(model, task, LogitDiff(), site=site, positions="each").raw
    assert_far(exact_each.sum("pos"), exact, share=1e-3)


@pytest.mark.parametrize("name", [*TEACHING, "gemma2", "granite", "opt", "falcon"])
def test_heads_add_up_to_attention(name: str) -> None:
    """The projection is linear: the heads' estimates sum to attention's (before a post-norm)."""
    model = teaching(name) if name in TEACHING else tiny(name)
    task = even_ioi(model) if name in TEACHING else ragged_tiny(model)
    heads = attribute(model, task, LogitDiff(), site="z").raw.sum("head")
    attention = attribute(model, task, LogitDiff(), site="attn_out").raw
    if name == "gemma2":  # the norm between them is not linear
        assert_far(heads, attention)
    else:
        assert_same(heads, attention)


@pytest.mark.parametrize("metric", [one_number, per_token, as_list])
def test_a_metric_that_is_not_one_number_per_example_is_refused(metric: Any) -> None:
    model = tiny("gpt2")
    with pytest.raises(MetricError, match=rf"{metric.__name__}.*one number for each of 3"):
        attribute(model, ragged_tiny(model), metric)


class Opaque(torch.nn.Linear):
    """A linear module that passes no gradient on, as kernels of quantized weights do not."""

    def forward(self, x: Any) -> Any:
        """The same numbers."""
        return super().forward(x.detach())


@pytest.mark.parametrize("part", ["mlp.down_proj", "self_attn.o_proj", "self_attn.q_proj"])
@pytest.mark.parametrize("site", ["resid_pre", "mlp_out"])
def test_a_module_that_passes_no_gradient_on_is_refused(part: str, site: Any) -> None:
    """The stream goes round it, so there would be numbers."""
    module = tiny_module("llama")
    module.model.layers[1].get_submodule(part).__class__ = Opaque
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    task = ragged_tiny(model)
    assert activation_patching(model, task, LogitDiff(), site=site).raw.any()
    with pytest.raises(ArchError, match=rf"layers\.1\.{part} \(Opaque\) passes no gradients"):
        attribute(model, task, LogitDiff(), site=site)
