"""A head's attention taken apart: the parts add up to what the model itself computes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnattr import decompose_attention
from nnattr.errors import ArchError, ArgumentError, ResultError, TaskError
from nnattr.tasks import repeated_tokens
from tests.methods.common import TEACHING, raw_module, teaching, tiny
from tests.methods.weight_circuits.common import dense
from tests.support.families import ALIBI, NORMED
from tests.tiny import FAMILIES, tiny_model

HEAD = (1, 0)
PROMPTS = ["w3 w4 w5 w6 w7 w8", "w33 w34 w35"]


def everything(parts: Any) -> list[tuple[str, str]]:
    return [(query, key) for query in parts.components for key in parts.components]


def own_scores(name: str, ids: Tensor, head: tuple[int, int]) -> Tensor:
    """The head's scores from hooks on the plain module, with the family's own rotary function."""
    module, seen = raw_module(teaching(name)), {}
    layer, number = head
    size, shared = dense(name)["size"], 1
    if name == "teaching-gpt2":
        hooked = {"qkv": module.transformer.h[layer].attn.c_attn}
    else:
        attention = module.model.layers[layer].self_attn
        hooked = {"q": attention.q_proj, "k": attention.k_proj}
        shared = 2
    handles = [
        part.register_forward_hook(lambda _, args, out, key=key: seen.update({key: out[0]}))
        for key, part in hooked.items()
    ]
    with torch.no_grad():
        module(ids)
    for handle in handles:
        handle.remove()
    if "qkv" in seen:
        seen["q"], seen["k"], _ = seen["qkv"].chunk(3, -1)
    q = seen["q"][:, number * size : (number + 1) * size]
    k = seen["k"][:, number // shared * size : (number // shared + 1) * size]
    if name == "teaching-llama":
        cos, sin = module.model.rotary_emb(q[None], torch.arange(len(q))[None])
        apply = sys.modules[type(module).__module__].apply_rotary_pos_emb
        q, k = (x[0, 0] for x in apply(q[None, None], k[None, None], cos, sin))
    return q @ k.T * size**-0.5


@pytest.mark.parametrize("head", [(0, 2), (1, 0), (3, 1)])
@pytest.mark.parametrize("name", TEACHING)
def test_all_pairs_sum_to_the_models_own_scores(name: str, head: Any) -> None:
    """The notebook's decompose_attn_scores, with and without rotary embeddings."""
    model = teaching(name)
    task = repeated_tokens(model.tokenizer, n=1, length=6)
    first = decompose_attention(model, task, head, pairs=0)
    assert first.data.sizes["pair"] == 0
    parts = decompose_attention(model, task, head, pairs=everything(first))
    ids = task.clean_tokens.ids
    expected = own_scores(name, ids, head)
    past = torch.ones_like(expected).tril().bool()
    summed = torch.tensor(parts.data["scores"][0].sum("pair", skipna=False).values)
    size = float(expected[past].abs().max())
    for found in (summed, torch.tensor(parts.data["total"][0].values)):
        torch.testing.assert_close(found[past], expected[past], rtol=0, atol=1e-5 * size + 1e-5)
        assert found[~past].isnan().all()
    module = raw_module(model)
    module.set_attn_implementation("eager")
    with torch.no_grad():
        attention = module(ids, output_attentions=True).attentions[head[0]][0, head[1]]
    module.set_attn_implementation("sdpa")
    found = torch.tensor(parts.data["pattern"][0].values)
    torch.testing.assert_close(found, attention, rtol=0, atol=1e-5)
    for i, pair in enumerate(parts.data["pair"].values[:5]):
        spread = parts.data["scores"][0, i].values[past.numpy()].std()
        query, key = str(pair).split(" → ")
        assert float(
            parts.data["spread"][0].sel(query_component=query, key_component=key)
        ) == pytest.approx(spread, rel=1e-3, abs=1e-6)


def test_the_parts_are_what_plain_hooks_say() -> None:
    """The notebook's decompose_q of one component: a head's result, the norm, W_Q."""
    model, w = teaching("teaching-gpt2"), dense("teaching-gpt2")
    module = raw_module(model)
    task = repeated_tokens(model.tokenizer, n=1, length=6)
    seen: dict[str, Tensor] = {}
    blocks = module.transformer.h
    handles = [
        blocks[0].attn.c_proj.register_forward_pre_hook(lambda _, a: seen.update(z=a[0][0])),
        blocks[1].ln_1.register_forward_pre_hook(lambda _, a: seen.update(x=a[0][0])),
    ]
    with torch.no_grad():
        module(task.clean_tokens.ids)
    for handle in handles:
        handle.remove()
    norm = blocks[1].ln_1
    scale = (seen["x"].var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    parts = decompose_attention(model, task, HEAD)
    for head in range(4):
        result = seen["z"][:, head * 32 : (head + 1) * 32] @ w["o"][0][head]
        normed = (result - result.mean(-1, keepdim=True)) / scale * norm.weight
        for name, matrix in (("query", w["q"][1][0]), ("key", w["k"][1][0])):
            expected = (normed @ matrix).norm(dim=-1)
            found = parts.data[name][0].sel(component=f"L0H{head}")
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TEACHING)
def test_the_induction_head_reads_the_previous_token_head(name: str) -> None:
    """The largest pair has L0H0 in its keys, and its map has the induction stripe."""
    model = teaching(name)
    task = repeated_tokens(model.tokenizer, n=3, length=10)
    parts = decompose_attention(model, task, HEAD, pairs=2)
    assert parts.top(1)[0].index[1] == "L0H0"
    first = parts.data["scores"].isel(pair=0)
    pair = str(first["pair"].item())
    assert pair.endswith("→ L0H0")
    skip = 1 if name == "teaching-llama" else 0
    stripe, others = [], []
    for example in range(3):
        scores = first[example].values
        for query in range(10 + skip, scores.shape[0] - 1):
            stripe.append(scores[query, query - 9])
            others += [scores[query, key] for key in range(skip, 10) if key != query - 9]
    assert np.mean(stripe) > np.mean(others) + 3 * np.std(others) / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_falls_apart_or_says_why_not(family: str) -> None:
    model = tiny(family)
    head = (model.n_layers - 1, 1)
    if family in NORMED:
        with pytest.raises(ArchError, match="norms its queries and keys inside attention"):
            decompose_attention(model, PROMPTS, head)
        return
    if family in ALIBI:
        with pytest.raises(ArchError, match="comes from no component"):
            decompose_attention(model, PROMPTS, head)
        return
    parts = decompose_attention(model, PROMPTS, head, pairs=3)
    assert np.isfinite(parts.data["spread"]).all()
    assert "L0H3" in parts.components
    assert parts.components[-1] == "bias"
    np.testing.assert_allclose(parts.data["pattern"][0].sum("key_pos"), 1, atol=1e-5)
    alone = decompose_attention(model, PROMPTS[1], head, pairs=0)
    np.testing.assert_allclose(
        parts.data["total"][1, :3, :3], alone.data["total"][0], rtol=1e-4, atol=1e-4
    )
    assert parts.data["total"][1, 3:].isnull().all()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gptj", "falcon"])
def test_a_simulated_server_gives_the_same(family: str) -> None:
    here, there = tiny(family), tiny_model(family, backend="simulated")
    one, other = (decompose_attention(model, PROMPTS, (2, 1)) for model in (here, there))
    for name in one.data:
        np.testing.assert_allclose(other.data[name], one.data[name], rtol=1e-4, atol=1e-5)


def test_the_figures() -> None:
    model = teaching("teaching-gpt2")
    task = repeated_tokens(model.tokenizer, n=2, length=5)
    parts = decompose_attention(model, task, HEAD)
    count, width = len(parts.components), task.width
    shapes = {
        "spread": (count, count),
        "query": (count, width),
        "key": (count, width),
        "scores": (width, width),
        "total": (width, width),
        "pattern": (width, width),
    }
    for what, shape in shapes.items():
        figure: Any = parts.plot(what, example=1)  # type: ignore[arg-type]
        assert figure.data[0].z.shape == shape
        assert figure.layout.title.text.startswith("<b>L1H0: ")
    token = task.clean_tokens.strings[1][0].strip()
    assert token in figure.layout.xaxis.ticktext[0]
    assert "L1H0 of teaching-gpt2" in repr(parts)


def test_what_makes_no_sense_is_refused() -> None:
    model = tiny("gpt2")
    with pytest.raises(TaskError, match="is not a pair of components"):
        decompose_attention(model, PROMPTS, (1, 0), pairs=[("embed", "L1H0")])
    with pytest.raises(ArchError, match="has no head"):
        decompose_attention(model, PROMPTS, (7, 0))
    with pytest.raises(TaskError, match="expected a prompt"):
        decompose_attention(model, [], (1, 0))
    parts = decompose_attention(model, PROMPTS, (1, 0), pairs=0)
    for what, options in (("scores", {}), ("maps", {}), ("total", {"example": 5})):
        with pytest.raises((ArgumentError, ResultError)):
            parts.plot(what, **options)  # type: ignore[arg-type]
