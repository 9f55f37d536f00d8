"""Rows laid end to end in one sequence, blind to each other, so that they share the cached keys.

As rows of a batch, each needs its own copy of the keys and values before it, which costs the more
the longer the prompt. As a *lot* in one sequence the rows of an example share one copy, with their
own positions and with a mask by which a row sees what is cached and itself. The products with keys
that it does not see are the price: a lot is no longer than what is cached. And its sequence is no
longer than the longest that the job has compared, for a model may count keys by itself.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.runs import counted


def shareable(ask: SimpleNamespace, cache: Any) -> bool:
    """Whether it is worth trying: positions can be given, and no window is shorter than prompts."""
    if cache is None or not ask.takes_positions:
        return False
    width = ask.base["ids"].shape[1]
    return all((getattr(layer, "sliding_window", None) or width) >= width for layer in cache.layers)


def lot(ask: SimpleNamespace, start: int, least: int = 1) -> int:
    """How many rows of an example share a sequence that goes on from ``start``.

    ``ask.keys`` is the longest sequence that the model was seen to serve, if it is known yet.
    """
    if not ask.abreast:
        return 1
    tokens = ask.base["ids"].shape[1] - start
    most = min(max(least, start // tokens), ask.tokens // tokens)
    if ask.keys is not None:
        most = min(most, (ask.keys - start) // tokens)
    most = max(1, most)
    shares = -(-ask.units // most)
    return -(-ask.units // shares)


def groups(example: Tensor, size: int) -> Tensor:
    """Which row stands where [group, at most ``size``]: groups of one example each.

    ``example`` [row] says whose rows they are; an example's rows follow each other. A short group
    is filled up with its last row.
    """
    if size == 1:
        return torch.arange(len(example))[:, None]
    _, counts = torch.unique_consecutive(example, return_counts=True)
    size, found = min(size, int(counts.max())), []
    for rows in torch.arange(len(example)).split(counts.tolist()):
        for some in rows.split(size):
            found.append(torch.cat([some, some[-1:].expand(size - len(some))]))
    return torch.stack(found)


def end_to_end(value: Tensor, size: int) -> Tensor:
    """Rows [row, pos, ...] as sequences of ``size`` rows each."""
    return value.unflatten(0, (-1, size)).flatten(1, 2)


def apart(value: Tensor, size: int) -> Tensor:
    """Sequences of ``size`` rows each as rows [row, pos, ...]."""
    return value.unflatten(1, (size, -1)).flatten(0, 1)


def inputs_abreast(
    ask: SimpleNamespace,
    prompts: dict[str, Tensor],
    start: int,
    cache: Any,
    size: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The model's inputs for ``size`` rows of each of these prompts, from ``start`` on."""
    mask = prompts["mask"]
    return {
        "input_ids": prompts["ids"][:, start:].repeat(1, size),
        "position_ids": counted(mask)[:, start:].repeat(1, size),
        "attention_mask": blind(mask, start, size, dtype),
        "past_key_values": cache,
        **{name: value for name, value in ask.options.items() if name != "logits_to_keep"},
    }


def blind(mask: Tensor, start: int, size: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores [example, 1, query, key] so that rows see only themselves.

    Besides they see what is cached; padding sees itself.
    """
    n, width = mask.shape
    tokens = width - start
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    own = causal & mask[:, None, start:] | torch.eye(tokens, dtype=torch.bool)
    seen = torch.zeros(n, size, tokens, start + size * tokens, dtype=torch.bool)
    seen[..., :start] = mask[:, None, None, :start]
    for row in range(size):
        first = start + row * tokens
        seen[:, row, :, first : first + tokens] = own
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, lowest).flatten(1, 2)[:, None]
