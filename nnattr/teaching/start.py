"""Initial values from which copying and looking back are easy to find.

At this size and with this little training the circuits of induction would take far longer to
form than everything else, so the models start near them:

- The embeddings start large, and the unembedding as a rotation of them, so that copying is one
  linear map for all tokens.
- Head L0H0 starts as a previous-token head, the first half of induction.
- In Llama the second half, heads that look for what it wrote, forms by itself within 200 steps.
  GPT-2, whose positions share the residual stream with the tokens, would need thousands, so
  there L1H0 starts by looking for it.

What these heads copy, and all other heads, start at random; training is free to change it all.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaForCausalLM

#: Standard deviation of the embeddings at the start; at this scale a copied token already wins.
EMBEDDING_SCALE = 0.12


@torch.no_grad()
def give_a_start(model: Any) -> None:
    """Overwrite some of a freshly built model's weights, as the module's docstring says."""
    embedding = model.get_input_embeddings().weight
    embedding.mul_(EMBEDDING_SCALE / model.config.initializer_range)
    turn = torch.linalg.qr(torch.randn(embedding.shape[1], embedding.shape[1])).Q
    model.lm_head.weight.copy_(embedding @ turn)
    if isinstance(model, LlamaForCausalLM):
        look_back_rotary(model)
    else:
        look_back_learned(model)
        match_previous(model)


def look_back_learned(model: Any) -> None:
    """Positions as sinusoids in 16 dimensions; L0H0 matches a position with the one before."""
    half, width = 8, model.config.n_embd
    size, head = 2 * half, width // model.config.n_head
    frequencies = 2.0 * 0.0125 ** (torch.arange(half) / (half - 1))
    angles = torch.arange(model.config.n_positions)[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    model.transformer.wte.weight[:, :size] = 0
    model.transformer.wpe.weight.zero_()
    model.transformer.wpe.weight[:, :size] = EMBEDDING_SCALE * table
    cos, sin = frequencies.cos().diag(), frequencies.sin().diag()
    one_back = torch.cat([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)])
    weight = model.transformer.h[0].attn.c_attn.weight  # [d_model, q + k + v]
    for start, matrix in ((0, one_back), (width, torch.eye(size))):
        weight[:, start : start + head] = 0
        weight[:size, start : start + size] = 6.0 * matrix


def match_previous(model: Any) -> None:
    """L0H0 copies a code of the token it sees; L1H0 looks for the code of its own token."""
    width, head = model.config.n_embd, model.config.n_embd // model.config.n_head
    code = torch.linalg.qr(torch.randn(width, head)).Q
    place = torch.linalg.qr(torch.randn(width, head)).Q
    first, second = (model.transformer.h[layer].attn for layer in (0, 1))
    first.c_attn.weight[:, 2 * width : 2 * width + head] = code
    first.c_proj.weight[:head] = EMBEDDING_SCALE * place.T
    second.c_attn.weight[:, :head] = 1.6 * code
    second.c_attn.weight[:, width : width + head] = 1.6 * place


def look_back_rotary(model: Any) -> None:
    """A constant in dimension 0, from which L0H0 makes a query one rotary step behind its key."""
    half = model.config.hidden_size // model.config.num_attention_heads // 2
    model.model.embed_tokens.weight[:, 0] = 4 * EMBEDDING_SCALE
    frequencies = 10000.0 ** (-torch.arange(5) / half)
    attention = model.model.layers[0].self_attn
    query, key = attention.q_proj.weight, attention.k_proj.weight  # [heads * d_head, d_model]
    query[: 2 * half] = 0
    key[: 2 * half] = 0
    query[:5, 0] = 1.7 * frequencies.cos()
    query[half : half + 5, 0] = -1.7 * frequencies.sin()
    key[:5, 0] = 1.7
