"""Next-token attribution: every position's parts sum to the logit of the token that comes next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnattr import Model, Scores, next_token_attribution, plots
from nnattr.errors import ArchError, ArgumentError, ResultError, TaskError
from nnattr.tasks import repeated_tokens
from tests.methods.common import TEACHING, assert_far, raw_module, teaching, tiny
from tests.tiny import FAMILIES, tiny_model

RAGGED = ["w3 w4 w5 w6 w7 w8", "w33 w34 w35 w36", "w40 w41 w42 w43 w44 w45 w46"]


def next_logits(model: Model, prompt: str) -> Tensor:
    """The plain model's logit of each next token, of one prompt alone."""
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        logits = raw_module(model)(ids).logits[0, :-1]
    return logits.gather(-1, ids[0, 1:, None])[:, 0]


def whole(scores: Scores) -> Any:
    rest = 0 if scores.rest is None else scores.rest.sum("component", skipna=False)
    cells = [dim for dim in scores.cell_dims if dim != "pos"]
    return scores.raw.sum(cells, skipna=False) + rest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", ["head", "component"])
def test_parts_sum_to_the_logit_at_every_position(family: str, unit: Any) -> None:
    model = tiny(family)
    found = whole(next_token_attribution(model, RAGGED, unit=unit)).to_numpy()
    for row, prompt in zip(found, RAGGED, strict=True):
        expected = next_logits(model, prompt).numpy()
        there = np.isfinite(row)
        assert there.sum() == len(expected)
        assert there[-1]
        np.testing.assert_allclose(row[there], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("backend", ["local", "simulated"])
def test_each_head_is_what_plain_hooks_say(backend: str) -> None:
    """The notebook's sum, head by head: z through its slice of W_O, the norm, the unembedding."""
    model = teaching("teaching-gpt2", backend)
    module = raw_module(model)
    task = repeated_tokens(model.tokenizer, n=1, length=8)
    seen: dict[int, Tensor] = {}
    last: list[Tensor] = []
    handles = [
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: seen.update({layer: args[0]})
        )
        for layer, block in enumerate(module.transformer.h)
    ]
    handles.append(module.transformer.ln_f.register_forward_pre_hook(lambda _, a: last.append(*a)))
    ids = task.clean_tokens.ids
    with torch.no_grad():
        module(ids)
    for handle in handles:
        handle.remove()
    norm = module.transformer.ln_f
    scale = (last[0][0].var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    expected = np.zeros((model.n_layers, model.n_heads, ids.shape[1] - 1))
    size = module.config.n_embd // model.n_heads
    for layer, block in enumerate(module.transformer.h):
        for head in range(model.n_heads):
            part = slice(head * size, (head + 1) * size)
            result = seen[layer][0][:, part] @ block.attn.c_proj.weight[part]
            normed = (result - result.mean(-1, keepdim=True)) / scale * norm.weight
            unembedding = module.lm_head.weight[ids[0, 1:]]
            expected[layer, head] = (normed[:-1] * unembedding).sum(-1)
    scores = next_token_attribution(model, task)
    np.testing.assert_allclose(scores.raw[0], expected, atol=1e-4)
    assert_far(scores.raw[0], expected[:, ::-1])


@pytest.mark.parametrize("name", TEACHING)
def test_the_induction_head_writes_the_second_copy(name: str) -> None:
    """The notebook's two figures: nothing to copy in the first half, L1H0 copies in the second."""
    model = teaching(name)
    task = repeated_tokens(model.tokenizer, n=4, length=12)
    scores = next_token_attribution(model, task)
    assert scores.raw.dims == ("example", "layer", "head", "pos")
    first = scores.raw.isel(pos=slice(0, 10)).mean(("example", "pos"))
    second = scores.raw.isel(pos=slice(13, None)).mean(("example", "pos"))
    gain = second - first
    assert float(gain.sel(layer=1, head=0)) > 2
    assert float(abs(first.sel(layer=1, head=0))) < 0.5
    assert "good|" not in "".join(scores.raw["token"].values)


def test_the_figure_shows_every_part() -> None:
    model = teaching("teaching-gpt2")
    task = repeated_tokens(model.tokenizer, n=1, length=6)
    scores = next_token_attribution(model, task)
    assert scores.rest is not None
    figure: Any = plots.parts(scores)
    rows, columns = figure.data[0].z.shape
    assert rows == scores.rest.sizes["component"] + 16
    assert columns == scores.raw.sizes["pos"]
    labels = list(figure.layout.yaxis.ticktext)
    assert labels[:3] == ["embed", "pos_embed", "L0H0"]
    assert labels[6:9] == ["L0 attn bias", "L0 mlp", "L1H0"]
    assert labels[-1] == "bias"
    np.testing.assert_allclose(
        figure.data[0].z.sum(0), next_logits(model, task.clean[0]).numpy(), atol=1e-4
    )
    parts: Any = plots.parts(next_token_attribution(model, task, unit="component"))
    np.testing.assert_allclose(parts.data[0].z.sum(0), figure.data[0].z.sum(0), atol=1e-4)


def test_neurons_and_the_mean_of_a_batch() -> None:
    model = tiny("gpt2")
    scores = next_token_attribution(model, RAGGED, unit="neuron", layers=[1])
    assert scores.raw.dims == ("example", "layer", "pos", "neuron")
    expected = next_logits(model, RAGGED[0]).mean()
    np.testing.assert_allclose(scores.baselines.sel(run="clean")[0], expected, atol=1e-4)


def test_what_cannot_be_read_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(TaskError, match="it needs a next token"):
        next_token_attribution(model, ["w3 w4", "w5"])
    with pytest.raises(ArgumentError, match="unit is "):
        next_token_attribution(model, RAGGED, unit="accumulated")
    with pytest.raises(TaskError, match="expected a prompt"):
        next_token_attribution(model, [])
    with pytest.raises(ArchError, match="layers is"):
        next_token_attribution(model, RAGGED, layers=[9])
    scores = next_token_attribution(model, RAGGED)
    with pytest.raises(ResultError, match="not parts"):
        plots.parts(scores.where(scores.mean().raw > 0))
