"""Direct logit attribution: the parts sum to the whole, and each is what a plain run says it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnattr import LogProb, Scores, Task, direct_logit_attribution
from nnattr.errors import ArchError, ArgumentError, MetricError, ResultError, TaskError
from nnattr.maps.linear import by_probing, linear_map
from nnattr.maps.norm import apply, frozen, transpose
from tests.methods.common import (
    TEACHING,
    assert_far,
    even_ioi,
    ragged_ioi,
    ragged_tiny,
    teaching,
    tiny,
)
from tests.tiny import FAMILIES, LAYERS, tiny_model

MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
CAPPED = "gemma2"


def whole(scores: Scores) -> xr.DataArray:
    """All cells and what is beside them."""
    rest = 0 if scores.rest is None else scores.rest.sum("component")
    return scores.raw.sum(scores.cell_dims) + rest


def close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal to ``tolerance`` of the largest expected value, which is not nothing."""
    left, right = np.asarray(found), np.asarray(expected)
    size = np.abs(right).max()
    assert size > 1e-3
    np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", ["component", "head", "neuron"])
def test_parts_sum_to_the_metric(family: str, unit: Any) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    if unit == "neuron" and family in MIXTURES:
        with pytest.raises(ArchError, match=r"mixture of experts|not the sum of its parts"):
            direct_logit_attribution(model, task, unit=unit)
        return
    scores = direct_logit_attribution(model, task, unit=unit)
    close(whole(scores), scores.baselines.sel(run="clean"))
    assert_far(scores.raw, 0 * scores.raw + scores.raw.mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_point_is_the_metric_and_points_differ_by_components(family: str) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    points = direct_logit_attribution(model, task, unit="accumulated").raw
    parts = direct_logit_attribution(model, task).raw
    bias = parts.sel(component="bias")
    start = parts.sel(component=[n for n in parts["component"].values if "embed" in str(n)])
    close(points.sel(component="L0 pre"), start.sum("component") + bias, 1e-5)
    close(points.isel(component=-1), direct_logit_attribution(model, task).baselines[0])
    steps = [("attn", "L0 pre", "L0 mid"), ("mlp", "L0 mid", "L1 pre")]
    if model.spec.parallel:
        assert "L0 mid" not in points["component"]
        both = parts.sel(component=["L0 attn", "L0 mlp"]).sum("component")
        close(points.sel(component="L1 pre") - points.sel(component="L0 pre"), both, 1e-5)
        return
    for kind, before, after in steps:
        moved = points.sel(component=after) - points.sel(component=before)
        close(moved, parts.sel(component=f"L0 {kind}"), 1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "olmo2", "falcon", "granite", "cohere"])
def test_heads_and_their_bias_sum_to_attention(family: str) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    parts = direct_logit_attribution(model, task).raw
    heads = direct_logit_attribution(model, task, unit="head")
    assert heads.rest is not None
    for layer in range(LAYERS):
        total = heads.raw.sel(layer=layer).sum("head")
        total = total + heads.rest.sel(component=f"L{layer} attn bias")
        close(total, parts.sel(component=f"L{layer} attn"), 1e-5)
        other = heads.rest.sel(component=f"L{layer} mlp")
        np.testing.assert_allclose(other, parts.sel(component=f"L{layer} mlp"), rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "gpt_neox"])
def test_neurons_of_chosen_layers_sum_to_their_mlp(family: str) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    parts = direct_logit_attribution(model, task).raw
    scores = direct_logit_attribution(model, task, unit="neuron", layers=[1])
    assert scores.rest is not None
    assert scores.raw["layer"].values.tolist() == [1]
    total = scores.raw.sel(layer=1).sum("neuron") + scores.rest.sel(component="L1 mlp bias")
    close(total, parts.sel(component="L1 mlp"), 1e-5)
    assert "L0 mlp" in scores.rest["component"]
    assert scores.top(1)[0].label.startswith("L1N")


@pytest.mark.parametrize("name", TEACHING)
@pytest.mark.parametrize("unit", ["component", "head", "accumulated"])
def test_a_padded_batch_is_its_examples_one_by_one(name: str, unit: Any) -> None:
    model = teaching(name)
    task = ragged_ioi(model)
    together = direct_logit_attribution(model, task, unit=unit).raw
    alone = [direct_logit_attribution(model, task[[i]], unit=unit).raw for i in range(len(task))]
    close(together, np.concatenate(alone), 1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon", "opt"])
@pytest.mark.parametrize("unit", ["component", "head", "neuron", "accumulated"])
def test_a_simulated_server_gives_the_same(family: str, unit: Any) -> None:
    here = tiny(family)
    there = tiny_model(family, backend="simulated")
    task = ragged_tiny(here)
    for norm in ("frozen", "each"):
        if (unit, norm) == ("neuron", "each"):
            continue
        local = direct_logit_attribution(here, task, unit=unit, norm=norm)
        remote = direct_logit_attribution(there, task, unit=unit, norm=norm)
        np.testing.assert_allclose(remote.raw, local.raw, rtol=0, atol=1e-6)
        assert remote.provenance.jobs == 1


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt2")
    task = ragged_tiny(model)
    at_once = direct_logit_attribution(model, task, unit="head")
    monkeypatch.setattr("nnattr.model.model.TOKENS_PER_FORWARD", 1)
    np.testing.assert_allclose(
        direct_logit_attribution(model, task, unit="head").raw, at_once.raw, atol=1e-6
    )


def test_each_position_is_read_for_itself() -> None:
    """Against the model's own logits, token by token."""
    model = tiny("llama")
    task = ragged_tiny(model)
    scores = direct_logit_attribution(model, task, positions="each")
    assert scores.raw.dims == ("example", "component", "pos")
    assert scores.raw["token"].size == task.width
    pad = task.clean_tokens.padding[1]
    assert scores.raw[1, :, :pad].isnull().all()
    ids = task.clean_tokens.ids[1:2, pad:]
    with torch.no_grad():
        logits = model.nn._module(ids).logits[0]
    right, wrong = (list(side[1]) for side in (task.answer_ids, task.wrong_answer_ids))
    expected = logits[:, right].mean(-1) - logits[:, wrong].mean(-1)
    close(scores.raw[1, :, pad:].sum("component"), expected)
    heads = direct_logit_attribution(model, task, unit="head", positions=[0, -1])
    ends = direct_logit_attribution(model, task, unit="head", positions="each").raw
    close(heads.raw[0], (ends[0].isel(pos=1) + ends[0].isel(pos=-1)) / 2)


def test_each_part_normed_by_itself() -> None:
    """The logit lens on the answer's direction, against the modules called by hand."""
    model = tiny("gpt2")
    task = ragged_tiny(model)[[0]]
    module = model.nn._module
    with torch.no_grad():
        hidden = module(task.clean_tokens.ids, output_hidden_states=True).hidden_states
        logits = [module.lm_head(module.transformer.ln_f(h))[0, -1] for h in hidden[:-1]]
    right, wrong = (list(side[0]) for side in (task.answer_ids, task.wrong_answer_ids))
    expected = torch.stack([one[right].mean() - one[wrong].mean() for one in logits])
    scores = direct_logit_attribution(model, task, unit="accumulated", norm="each")
    points = scores.raw.sel(component=[f"L{i} pre" for i in range(LAYERS)])[0]
    close(points, expected)
    frozen_points = direct_logit_attribution(model, task, unit="accumulated").raw
    assert_far(frozen_points.sel(component=points["component"].values)[0], points)


def test_a_soft_cap_is_a_component() -> None:
    model = tiny(CAPPED)
    task = ragged_tiny(model)
    scores = direct_logit_attribution(model, task)
    cap = scores.raw.sel(component="softcap")
    assert float(np.abs(cap).max()) > 1e-2, "the cap bites on this model"
    assert (
        "softcap"
        not in direct_logit_attribution(tiny("llama"), ragged_tiny(tiny("llama"))).raw["component"]
    )


def test_attention_against_mlp() -> None:
    model = tiny("gpt2")
    task = ragged_tiny(model)
    scores = direct_logit_attribution(model, task)
    kinds = scores.by_kind()
    assert kinds.raw["component"].values.tolist() == ["embedding", "attention", "mlp", "bias"]
    close(kinds.raw.sum("component"), scores.baselines.sel(run="clean"))
    attention = scores.raw.sel(component=[f"L{i} attn" for i in range(LAYERS)]).sum("component")
    np.testing.assert_allclose(kinds.raw.sel(component="attention"), attention, rtol=1e-5)
    assert kinds.top(1)[0].label in kinds.raw["component"]
    with pytest.raises(ResultError, match="unit='component'"):
        direct_logit_attribution(model, task, unit="head").by_kind()


def test_either_run_can_be_taken_apart() -> None:
    model = tiny("llama")
    task = ragged_tiny(model)
    clean = direct_logit_attribution(model, task)
    corrupted = direct_logit_attribution(model, task, run="corrupted")
    xr.testing.assert_allclose(clean.baselines, corrupted.baselines, rtol=1e-4)
    close(whole(corrupted), clean.baselines.sel(run="corrupted"))
    assert_far(clean.raw, corrupted.raw)


def test_prompts_without_twins_will_do() -> None:
    model = tiny("gpt2")
    pairs = ragged_tiny(model)
    task = Task.from_prompts(
        pairs.clean, pairs.answers, pairs.wrong_answers, tokenizer=model.tokenizer
    )
    scores = direct_logit_attribution(model, task, unit="head")
    np.testing.assert_allclose(
        scores.raw, direct_logit_attribution(model, pairs, unit="head").raw, atol=1e-6
    )
    assert scores.baselines.sel(run="corrupted").isnull().all()
    with pytest.raises(TaskError, match="no corrupted prompts"):
        direct_logit_attribution(model, task, run="corrupted")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    model = tiny_model("gemma2")
    task = ragged_tiny(model)
    exact = direct_logit_attribution(model, task, unit="head")
    model.nn._module.to(dtype)
    rough = direct_logit_attribution(model, task, unit="head")
    gap = np.abs(rough.raw - exact.raw).max() / np.abs(exact.raw).max()
    assert float(gap) < 0.05


def test_a_result_with_its_rest_survives_the_disk(tmp_path: Any) -> None:
    model = tiny("gpt2")
    scores = direct_logit_attribution(model, ragged_tiny(model), unit="head")
    back = Scores.load(scores.save(tmp_path / "dla.safetensors"))
    xr.testing.assert_identical(back.raw, scores.raw)
    assert back.rest is not None
    assert scores.rest is not None
    xr.testing.assert_identical(back.rest, scores.rest)
    assert back.provenance == scores.provenance
    close(whole(back.mean()), scores.baselines.sel(run="clean").mean())
    assert back.sel(example=[0]).rest is not None
    assert back.sel(layer=1).rest is None


def test_wrong_options_are_named() -> None:
    model = tiny("gpt2")
    task = ragged_tiny(model)
    for options, message in (
        ({"unit": "layer"}, "unit is 'layer'"),
        ({"norm": "none"}, "norm is 'none'"),
        ({"run": "both"}, "run is 'both'"),
        ({"layers": [0]}, "unit='head'"),
        ({"unit": "neuron", "norm": "each"}, "means nothing for neurons"),
        ({"positions": "verb"}, "no positions named 'verb'"),
    ):
        with pytest.raises((ArgumentError, TaskError), match=message):
            direct_logit_attribution(model, task, **options)  # type: ignore[arg-type]
    with pytest.raises(ArchError, match="layers is"):
        direct_logit_attribution(model, task, unit="head", layers=[7])
    with pytest.raises(MetricError, match="not linear"):
        direct_logit_attribution(model, task, LogProb())
    with pytest.raises(TaskError, match="another tokenizer"):
        direct_logit_attribution(teaching("teaching-gpt2"), task)


def test_a_norm_of_another_kind_is_refused() -> None:
    class Squash(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x)

    model = tiny_model("gpt2")
    model.nn._module.transformer.ln_f = Squash()
    broken = replace(
        model,
        nn=type(model.nn)(model.nn._module, tokenizer=model.tokenizer, task="text-generation"),
    )
    with pytest.raises(ArchError, match="the norms differ by"):
        direct_logit_attribution(broken, ragged_tiny(model))


def test_weights_that_are_not_numbers_are_refused() -> None:
    model = tiny_model("gpt2")
    model.nn._module.transformer.wte.weight[:] = float("nan")
    with pytest.raises(MetricError, match="not finite"):
        direct_logit_attribution(model, ragged_tiny(model))


def test_the_task_of_a_tutorial() -> None:
    """Groups, names and a label a reader knows."""
    model = teaching("teaching-gpt2")
    scores = direct_logit_attribution(model, even_ioi(model, 3), unit="head")
    assert scores.top(1)[0].label[0] == "L"
    assert "direct_logit_attribution" in repr(scores)
    assert scores.provenance.arguments["unit"] == "head"


def norms(width: int) -> list[nn.Module]:
    plain = nn.LayerNorm(width)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    rms = nn.RMSNorm(width, eps=1e-6)
    nn.init.normal_(rms.weight)
    return [
        plain,
        rms,
        nn.LayerNorm(width, elementwise_affine=False),
        nn.LayerNorm(width, bias=False),
    ]


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(3, 40),
    kind=st.integers(0, 3),
    seed=st.integers(0, 99),
    size=st.floats(0.1, 100),
    offset=st.floats(-10, 10),
)
def test_a_frozen_norm_is_the_norm(
    width: int, kind: int, seed: int, size: float, offset: float
) -> None:
    """On the run itself, on sums of parts, and as a direction pulled back."""
    torch.manual_seed(seed)
    norm = norms(width)[kind]
    with torch.no_grad():
        x, u = size * torch.randn(2, 5, width) + offset, torch.randn(width)
        part = torch.randn_like(x)
        view = frozen(norm, x)
        assert view.centred == (kind != 1)
        assert float(view.gap.max()) < 1e-4
        scale = float(norm(x).abs().max())
        torch.testing.assert_close(apply(view, x) + view.bias, norm(x), rtol=0, atol=1e-4 * scale)
        summed = apply(view, part) + apply(view, x - part)
        torch.testing.assert_close(summed, apply(view, x), rtol=0, atol=1e-3 * scale)
        pulled = (transpose(view, u) * part).sum(-1)
        expected = (u * apply(view, part)).sum(-1)
        torch.testing.assert_close(pulled, expected, rtol=1e-3, atol=1e-3)


def test_no_norm_is_the_identity() -> None:
    x = torch.randn(2, 3, 8)
    view = frozen(None, x)
    torch.testing.assert_close(apply(view, x), x)
    torch.testing.assert_close(transpose(view, x[0, 0]).expand_as(x), x[0, 0].expand_as(x))


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_asking_a_module_gives_its_weights(family: str, dtype: torch.dtype) -> None:
    """As on a server whose job sees no weights; for both layouts, with bias and without."""
    model = tiny_model(family)
    model.nn._module.to(dtype)
    like = torch.zeros(1, dtype=dtype)
    for path in (model.places("z")[0][0], model.spec.unembed):
        module = model.nn.get(path)
        width = module.weight.shape[0 if type(module._module).__name__ == "Conv1D" else 1]
        for columns in (None, torch.tensor([3, 1])):
            weight, bias = linear_map(module, width, like, columns)
            found, offset = by_probing(module, width, like, columns)
            near = {"rtol": 0.01, "atol": 1e-4} if dtype == torch.bfloat16 else {}
            torch.testing.assert_close(found, weight, **near)
            torch.testing.assert_close(offset, bias, **near)
