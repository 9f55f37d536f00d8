"""Dense weights of the teaching models, straight from the raw modules."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.methods.common import raw_module, teaching


@cache
def dense(name: str) -> dict[str, Any]:
    """W_Q, W_K, W_V, W_O by layer [head, ...] with shared heads repeated; W_E, W_U, W_pos."""
    module = raw_module(teaching(name))
    config = module.config
    heads, width = config.num_attention_heads, config.hidden_size
    size = width // heads
    found: dict[str, Any] = {"q": [], "k": [], "v": [], "o": [], "size": size}
    if name == "teaching-gpt2":
        for block in module.transformer.h:
            three = block.attn.c_attn.weight.split(width, dim=1)
            for key, matrix in zip("qkv", three, strict=True):
                found[key].append(
                    torch.stack([matrix[:, h * size : (h + 1) * size] for h in range(heads)])
                )
            found["o"].append(block.attn.c_proj.weight.reshape(heads, size, width))
        found["E"], found["pos"] = module.transformer.wte.weight, module.transformer.wpe.weight
    else:
        shared = heads // config.num_key_value_heads
        for layer in module.model.layers:
            for key in "qkv":
                matrix = getattr(layer.self_attn, f"{key}_proj").weight
                own = [0 if key == "q" else h // shared for h in range(heads)]
                own = range(heads) if key == "q" else own
                found[key].append(torch.stack([matrix[h * size : (h + 1) * size].T for h in own]))
            matrix = layer.self_attn.o_proj.weight
            found["o"].append(
                torch.stack([matrix[:, h * size : (h + 1) * size].T for h in range(heads)])
            )
        found["E"] = module.model.embed_tokens.weight
    found["U"] = module.lm_head.weight.T
    return found


def ov(name: str, layer: int, head: int) -> Tensor:
    """W_V W_O of one head [d_model, d_model]."""
    w = dense(name)
    return w["v"][layer][head] @ w["o"][layer][head]


def qk(name: str, layer: int, head: int) -> Tensor:
    """W_Q W_K^T of one head [d_model, d_model]."""
    w = dense(name)
    return w["q"][layer][head] @ w["k"][layer][head].T
