r"""Queries and keys as they meet: after rotary embeddings and norms of heads, read inside a job.

They exist nowhere as a module's output. Attention that follows transformers' common interface hands
them to a function, ``attention_interface(module, q, k, v, mask, scaling=...)``, whose arguments
nnsight can read from the module's source. Where that call is absent the model is refused.

What is read is proven: with the mask and the scaling of the same call,

.. math:: \mathrm{softmax}(\mathrm{cap}(q k^T \cdot \mathrm{scaling}) + \mathrm{mask})

must be the pattern that the module returns, so a pass with the eager implementation is used (see
`nnattr.runs.patterns`). All of this travels: torch and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.patterns import flaw, go_back, go_eager, other_model, read_pattern
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import scores_tolerance

NO_CALL = (
    "does not hand its queries and keys to transformers' common attention interface, so they "
    "cannot be read after the rotary turn; use q and k, from before it."
)
#: Scores below this come from a mask: half of what float16 can hold, the smallest that models use.
LOWEST = -32000.0
OTHER = "multiplies other queries and keys than those that it hands on; use q and k."


def rotated(
    nn: Any,
    prompts: PromptBatch,
    paths: list[list[str]],
    options: dict[str, Any] | None,
    scores: bool = False,
) -> list[Any]:
    """One pass: each layer's queries and keys as they meet, or their scores.

    Args:
        nn: the nnsight model.
        prompts: what is run.
        paths: of the layers wanted; see `nnattr.model.patterns.attention_paths`.
        options: further arguments of the pass.
        scores: whether scores are wanted.

    Returns:
        for each layer q [example, head, pos, d_head] and k [example, kv_head, pos, d_head]; or
        what the softmax gets [example, head, query_pos, key_pos], -inf where a query does not look.

    Raises:
        RefusedError: they cannot be read, or are not what the model multiplies.
    """
    found: list[Any] = []
    problems: list[tuple[str, str]] = []
    before = go_eager(nn)
    try:
        with nn.trace(**inputs(prompts, options)):
            with torch.no_grad():
                for inside in paths:
                    source = nn.get(inside[0]).source
                    call = getattr(source, "attention_interface_1", None)
                    if call is None:
                        problems.append(("arch", f"{inside[0]} {NO_CALL}"))
                        break
                    arguments, named = call.inputs
                    q, k, mask = arguments[1], arguments[2], arguments[4]
                    pattern = read_pattern(nn, inside)
                    problem = flaw(pattern, prompts.mask, inside[0])
                    before_softmax = attention_scores(q, k, mask, named)
                    if problem is None and not explains(before_softmax, pattern, prompts):
                        problem = ("arch", f"{inside[0]} {OTHER}")
                    if problem is not None:
                        problems.append(problem)
                        break
                    found.append(unmasked(before_softmax) if scores else (q.clone(), k.clone()))
                logits = nn.output.logits[:, -1]
    finally:
        go_back(before)
    if not problems:
        problems += other_model(nn, prompts, logits, before, options)
    if problems:
        raise RefusedError(*problems[0])
    return found


def attention_scores(q: Tensor, k: Tensor, mask: Tensor | None, named: dict[str, Any]) -> Tensor:
    """What the softmax gets of these queries and keys [example, head, query_pos, key_pos]."""
    shared = q.shape[1] // k.shape[1]
    scores = q.float() @ k.float().repeat_interleave(shared, 1).transpose(-1, -2)
    scores = scores * named["scaling"]
    if named.get("softcap") is not None:
        scores = named["softcap"] * torch.tanh(scores / named["softcap"])
    return scores if mask is None else scores + mask[..., : k.shape[-2]].float()


def unmasked(scores: Tensor) -> Tensor:
    """The scores with -inf for the very low number that a mask adds, whatever it is."""
    return scores.masked_fill(scores < LOWEST, float("-inf"))


def explains(scores: Tensor, pattern: Any, prompts: PromptBatch) -> bool:
    """Whether the pattern is what these scores give."""
    rows = prompts.mask.to(scores.device)[:, None, :, None]
    gap = ((scores.softmax(-1) - pattern.float()) * rows).abs().max()
    return bool(gap <= scores_tolerance(pattern.dtype))
