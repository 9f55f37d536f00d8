"""Rows laid end to end in one sequence, masked from each other, so that they share cached keys.

As rows of a batch, each needs its own copy of the keys and values before it, which costs the more
the longer the prompt. Packed into one sequence the rows of an example share one copy, with their
own positions and with a mask by which a row sees what is cached and itself. The products with keys
that it does not see are the price: what is packed is no longer than what is cached. And its
sequence is no longer than the longest that the job has compared, for a model may count keys by
itself.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.question import Layout, Question
from nnattr.runs.inputs import PromptBatch
from nnattr.runs.patterns import implementations

#: Attention kernels that take a mask of numbers [example, 1, query, key]. Others, such as flex
#: attention, are given masks of their own making, and one of ours aborts the process.
DENSE = ("eager", "sdpa")


def can_pack(nn: Any, question: Question, cache: Any) -> bool:
    """Whether it is worth trying: positions can be given, and no window is shorter than prompts.

    And the kernel takes the mask by which a row sees only itself.
    """
    if cache is None or not question.layout.takes_positions:
        return False
    if not implementations(nn) <= set(DENSE):
        return False
    width = question.base.width
    return all((getattr(layer, "sliding_window", None) or width) >= width for layer in cache.layers)


def rows_per_sequence(
    question: Question, start: int, budget_tokens: int, longest: int | None, least: int = 1
) -> int:
    """How many rows of an example share a sequence that goes on from ``start``.

    Args:
        question: whose rows they are.
        start: where the pass begins.
        budget_tokens: the most that one pass runs.
        longest: the longest sequence that the model was seen to serve, if that is known yet.
        least: at least so many, if they fit.
    """
    tokens = question.base.width - start
    most = min(max(least, start // tokens), budget_tokens // tokens)
    if longest is not None:
        most = min(most, (longest - start) // tokens)
    most = max(1, most)
    sequences = -(-question.units // most)
    return -(-question.units // sequences)


def grouped(key: Tensor, size: int) -> Tensor:
    """Which row stands where [sequence, at most ``size``]: sequences of rows of one key each.

    Rows of a key [row] follow each other. A short sequence is filled up with its last row.
    """
    if size == 1:
        return torch.arange(len(key))[:, None]
    _, counts = torch.unique_consecutive(key, return_counts=True)
    size, found = min(size, int(counts.max())), []
    for rows in torch.arange(len(key)).split(counts.tolist()):
        for some in rows.split(size):
            found.append(torch.cat([some, some[-1:].expand(size - len(some))]))
    return torch.stack(found)


def pack(value: Tensor, size: int) -> Tensor:
    """Rows [row, pos, ...] as sequences of ``size`` rows each."""
    return value.unflatten(0, (-1, size)).flatten(1, 2)


def unpack(value: Tensor, size: int) -> Tensor:
    """Sequences of ``size`` rows each as rows [row, pos, ...]."""
    return value.unflatten(1, (size, -1)).flatten(0, 1)


def packed_inputs(
    prompts: PromptBatch,
    layout: Layout,
    start: int,
    cache: Any,
    size: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The model's arguments for ``size`` rows of each of these prompts, from ``start`` on."""
    return {
        "input_ids": prompts.ids[:, start:].repeat(1, size),
        "position_ids": prompts.positions()[:, start:].repeat(1, size),
        "attention_mask": row_mask(prompts.mask, start, size, dtype),
        layout.cache_name: cache,
        **prompts.reads(start, size=size),
        **{name: value for name, value in layout.options.items() if name != "logits_to_keep"},
    }


def row_mask(mask: Tensor, start: int, size: int, dtype: torch.dtype) -> Tensor:
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
