"""Attention patterns by the model's own output, with the eager implementation, one prompt alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def patterns(module: Any, ids: Tensor) -> Tensor:
    """``output_attentions`` of one unpadded prompt [layer, head, query_pos, key_pos].

    The implementation is set on the configuration: Falcon does not let itself be asked, and under
    sdpa it returns attentions that look ahead (transformers 5.22).
    """
    before = module.config._attn_implementation
    with torch.no_grad():
        plain = module(ids, use_cache=False).logits
        module.config._attn_implementation = "eager"
        try:
            found = module(ids, output_attentions=True, use_cache=False)
        finally:
            module.config._attn_implementation = before
    torch.testing.assert_close(found.logits, plain, rtol=0, atol=1e-4)
    return torch.cat(list(found.attentions))


def kind_scores(pattern: Tensor, ids: list[int]) -> dict[str, list[float]]:
    """The kinds of heads by loops over one prompt's pattern [head, query_pos, key_pos]."""
    found: dict[str, list[float]] = {}
    for kind in ("previous", "current", "first", "duplicate", "induction"):
        found[kind] = []
        for head in pattern:
            paid = []
            for query, token in enumerate(ids):
                earlier = [key for key in range(query) if ids[key] == token]
                looked = {
                    "previous": [query - 1] if query else [],
                    "current": [query],
                    "first": [0],
                    "duplicate": earlier,
                    "induction": [key + 1 for key in earlier],
                }[kind]
                if looked:
                    paid.append(sum(float(head[query, key]) for key in looked))
            found[kind].append(sum(paid) / len(paid) if paid else float("nan"))
    return found
