"""Heads with attention sinks, as gpt-oss has them: rows of a pattern sum to less than one."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss

import nnattr
from nnattr import LogitDiff, Model
from tests.methods.common import ragged_tiny
from tests.tiny import CONTEXT, D_HEAD, D_MLP, D_MODEL, HEADS, KV_HEADS, LAYERS, VOCAB
from tests.tiny import tiny_tokenizer as tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": D_HEAD,
    "intermediate_size": D_MLP,
    "max_position_embeddings": CONTEXT,
    "layer_types": ["full_attention"] * LAYERS,
}
KINDS = {
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite_swa": {},
}


@cache
def bare(kind: str) -> Any:
    """A tiny module that nobody wraps; its heads' sinks take shares of every size."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **KINDS[kind])
    module = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, weight in module.named_parameters():
        if name.endswith("sinks"):
            weight.normal_(1.0)
        elif weight.ndim > 1:
            weight.normal_(0.0, 0.3)
    return module


@cache
def sinking(kind: str) -> Model:
    return nnattr.load(copy.deepcopy(bare(kind)), tokenizer=tokenizer())


def seen_by_torch(kind: str, ids: Tensor) -> list[Tensor]:
    """Each layer's pattern of one prompt by transformers alone, the sinks' shares taken off."""
    module = bare(kind)
    given = module(input_ids=ids[None], output_attentions=True)
    found = []
    for layer, whole in zip(module.model.layers, given.attentions, strict=True):
        if kind == "gpt_oss":
            found.append(whole[0])
            continue
        kept: dict[str, Tensor] = {}  # granite returns what it had before the sink took its share
        hook = layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, kept=kept: kept.update(z=args[0])
        )
        v = layer.self_attn.v_proj.register_forward_hook(
            lambda _, args, out, kept=kept: kept.update(v=out)
        )
        module(input_ids=ids[None])
        hook.remove()
        v.remove()
        value = kept["v"].unflatten(-1, (KV_HEADS, -1)).repeat_interleave(HEADS // KV_HEADS, 2)
        plain = torch.einsum("hqk,khd->qhd", whole[0], value[0])
        z = kept["z"][0].unflatten(-1, (HEADS, -1))
        share = (z * plain).sum(-1) / (plain * plain).sum(-1)  # [query_pos, head]
        found.append(whole[0] * share.T[..., None])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_are_what_heads_move(kind: str) -> None:
    model = sinking(kind)
    task = ragged_tiny(model)
    found = nnattr.attention_patterns(model, task)
    shares = []
    for example, row in enumerate(task.clean_tokens.rows):
        expected = seen_by_torch(kind, torch.tensor(row))
        for layer in range(LAYERS):
            for head in range(HEADS):
                ours = found.of(layer, head, example).to_numpy()
                np.testing.assert_allclose(ours, expected[layer][head], atol=1e-5)
                shares.append(float(ours.sum(-1).min()))
    assert min(shares) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_heads_are_shares_of_the_whole_softmax(kind: str) -> None:
    model = sinking(kind)
    found = nnattr.detect_heads(model, n=2, length=6, seed=3)
    rows = found.tokens.rows
    current = torch.stack(
        [
            torch.stack([pattern.diagonal(dim1=1, dim2=2).mean(-1) for pattern in patterns])
            for patterns in (seen_by_torch(kind, torch.tensor(row)) for row in rows)
        ]
    )
    ours = found.data["scores"].sel(kind="current").transpose("example", "layer", "head")
    np.testing.assert_allclose(ours, current, atol=1e-5)


def test_the_parts_of_a_heads_scores() -> None:
    model = sinking("gpt_oss")
    task = ragged_tiny(model)
    parts = nnattr.decompose_attention(model, task, (1, 2))
    for example, row in enumerate(task.clean_tokens.rows):
        expected = seen_by_torch("gpt_oss", torch.tensor(row))[1][2]
        ours = parts.data["pattern"].to_numpy()[example, : len(row), : len(row)]
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_heads_matrices() -> None:
    model = sinking("gpt_oss")
    attention = model.module.model.layers[1].self_attn
    found = nnattr.weights.head(model, (1, 3)).data
    for name, projection in (("q", attention.q_proj), ("k", attention.k_proj)):
        heads = HEADS if name == "q" else KV_HEADS
        own = projection.weight.unflatten(0, (heads, -1))[3 * heads // HEADS].T
        np.testing.assert_allclose(found[f"W_{name.upper()}"].to_numpy(), own, atol=1e-6)
    value = attention.v_proj.weight.unflatten(0, (KV_HEADS, -1))[3 * KV_HEADS // HEADS].T
    np.testing.assert_allclose(found["W_V"].to_numpy(), value, atol=1e-6)


def test_a_patched_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the pattern replaced inside transformers' own function, one cell at a time."""
    model, module = sinking("gpt_oss"), bare("gpt_oss")
    task = ragged_tiny(model)[:1]
    ours = nnattr.activation_patching(model, task, LogitDiff(), site="pattern", normalized=False)
    clean, corrupted = (
        torch.tensor([tokens.rows[0]]) for tokens in (task.clean_tokens, task.corrupted_tokens)
    )
    kept = module(input_ids=clean, output_attentions=True).attentions
    plain = gpt_oss.eager_attention_forward

    def value(logits: Tensor) -> float:
        last = logits[0, -1]
        right, wrong = (
            float(last[list(ids[0])].mean()) for ids in (task.answer_ids, task.wrong_answer_ids)
        )
        return right - wrong

    before = value(module(input_ids=corrupted).logits)
    for layer, head in np.ndindex(LAYERS, HEADS):

        def patched(part: Any, *given: Any, at: Any = (layer, head), **named: Any) -> Any:
            output, pattern = plain(part, *given, **named)
            if part.layer_idx == at[0]:
                pattern[:, at[1]] = kept[at[0]][:, at[1]]
                values = gpt_oss.repeat_kv(given[2], part.num_key_value_groups)
                output = (pattern @ values).transpose(1, 2).contiguous()
            return output, pattern

        monkeypatch.setattr(gpt_oss, "eager_attention_forward", patched)
        change = value(module(input_ids=corrupted).logits) - before
        monkeypatch.setattr(gpt_oss, "eager_attention_forward", plain)
        np.testing.assert_allclose(ours.raw.values[0, layer, head], change, atol=1e-5)
    assert abs(ours.raw.values).max() > 0.01


def test_a_rehearsal_gives_the_same() -> None:
    model = sinking("gpt_oss")
    there = replace(model, backend=nnattr.Simulated())
    task = ragged_tiny(model)
    for ask, given in (
        (nnattr.attention_patterns, {"prompts": task}),
        (nnattr.detect_heads, {"n": 2, "length": 6}),
        (nnattr.decompose_attention, {"prompts": task, "head": (1, 2)}),
        (nnattr.weights.composition, {"kind": "K"}),
    ):
        xr.testing.assert_identical(ask(there, **given).data, ask(model, **given).data)
