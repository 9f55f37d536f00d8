"""Whether a model has the heads it is to teach about: attention patterns and ablations.

A head's output is what enters the attention output projection, so ablating a head means setting
its slice of that projection's *input* to zero.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from nnattr.graph import Part
from nnattr.runs import head_kinds
from nnattr.teaching.batches import ordinary_ids

Head = tuple[int, int]


@torch.no_grad()
def attention_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> dict[str, float | str]:
    """The best induction head and the best previous-token head, by mean attention.

    What these are says `nnattr.runs.head_kinds`: an induction head looks, from a token of the
    second copy, at what followed it in the first; a previous-token head looks one token back.
    """
    length, opening = 30, tokenizer("").input_ids
    sequences = [rng.sample(ordinary_ids(tokenizer), length) for _ in range(16)]
    ids = torch.tensor([opening + sequence * 2 for sequence in sequences])
    implementation = model.config._attn_implementation or "sdpa"
    model.set_attn_implementation("eager")
    attentions = torch.stack(model(input_ids=ids, output_attentions=True).attentions)
    model.set_attn_implementation(implementation)
    wanted = head_kinds.keys(ids, torch.ones_like(ids, dtype=torch.bool))
    induction, previous = (
        torch.stack([head_kinds.scores(layer, wanted[kind]).mean(0) for layer in attentions])
        for kind in ("induction", "previous")
    )
    return {
        "induction_head_score": induction.max().item(),
        "induction_head": str(Part("head", *largest(induction))),
        "previous_token_head_score": previous.max().item(),
        "previous_token_head": str(Part("head", *largest(previous))),
    }


def largest(scores: Tensor) -> Head:
    """(layer, head) of the largest score."""
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return layer, head


def output_projections(model: Any) -> list[nn.Module]:
    """The attention output projection of every layer."""
    if model.config.model_type == "gpt2":
        return [block.attn.c_proj for block in model.transformer.h]
    return [layer.self_attn.o_proj for layer in model.model.layers]


@contextmanager
def ablated(model: PreTrainedModel, head: Head) -> Iterator[None]:
    """Within the block the head writes nothing into the residual stream."""
    layer, index = head
    heads = model.config.num_attention_heads

    def silence(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = rearrange(args[0], "... (head width) -> ... head width", head=heads).clone()
        z[..., index, :] = 0
        return (rearrange(z, "... head width -> ... (head width)"), *args[1:])

    handle = output_projections(model)[layer].register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def ablation_effects(model: PreTrainedModel, metric: Callable[[], float]) -> dict[Head, float]:
    """How far each head's ablation moves the metric, as a share of it; -0.4 is 40 % lost."""
    whole = metric()
    effects = {}
    for layer in range(model.config.num_hidden_layers):
        for index in range(model.config.num_attention_heads):
            with ablated(model, (layer, index)):
                effects[layer, index] = metric() / whole - 1
    return effects


def strongest_heads(
    model: PreTrainedModel, metric: Callable[[], float], count: int = 6
) -> dict[str, float | str]:
    """The heads whose ablation moves the indirect-object logit difference most."""
    effects = ablation_effects(model, metric)
    order = sorted(effects, key=lambda head: abs(effects[head]), reverse=True)[:count]
    return {
        "ioi_strongest_head_effect": abs(effects[order[0]]),
        "ioi_strongest_heads": ", ".join(
            f"{Part('head', *one)} {effects[one]:+.2f}" for one in order
        ),
    }
