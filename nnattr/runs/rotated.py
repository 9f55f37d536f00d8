"""Queries and keys as they meet: after rotary embeddings and norms of heads, read inside a job.

They exist nowhere as a module's output; they are read where attention hands them to transformers'
common interface (`nnattr.runs.interface`). Where that call is absent the model is refused.

What is read is proven: with the mask and the scaling of the same call it must give the pattern that
the module returns, so a pass with the eager implementation is used (see `nnattr.runs.patterns`).
All of this travels: torch and plain values only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.interface import Handed, call_in
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
    kept: Callable[[Handed], Any],
) -> list[Any]:
    """One pass: what is kept of each layer's queries and keys as they meet.

    Args:
        nn: the nnsight model.
        prompts: what is run.
        paths: of the layers wanted; see `nnattr.model.patterns.attention_paths`.
        options: further arguments of the pass.
        kept: what is kept of what attention is handed: `pair`, or `scores`, say.

    Returns:
        that, for each layer.

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
                    call = call_in(nn, inside[0])
                    if call is None:
                        problems.append(("arch", f"{inside[0]} {NO_CALL}"))
                        break
                    handed = Handed(*call.inputs)
                    pattern = read_pattern(nn, inside)
                    problem = flaw(pattern, prompts.mask, inside[0], handed.sinks is not None)
                    if problem is None and not explains(handed, pattern, prompts):
                        problem = ("arch", f"{inside[0]} {OTHER}")
                    if problem is not None:
                        problems.append(problem)
                        break
                    found.append(kept(handed))
                logits = nn.output.logits[:, -1]
    finally:
        go_back(before)
    if not problems:
        problems += other_model(nn, prompts, logits, before, options)
    if problems:
        raise RefusedError(*problems[0])
    return found


def pair(handed: Handed) -> tuple[Tensor, Tensor]:
    """Queries [example, head, pos, d_head] and keys [example, kv_head, pos, d_head]."""
    return handed.q.clone(), handed.k.clone()


def scores(handed: Handed) -> Tensor:
    """What the softmax gets [example, head, query_pos, key_pos], -inf where a query looks not.

    A mask adds some very low number there, whatever it is.
    """
    found = handed.scores()
    return found.masked_fill(found < LOWEST, float("-inf"))


def explains(handed: Handed, pattern: Any, prompts: PromptBatch) -> bool:
    """Whether the pattern is what these queries and keys give."""
    rows = prompts.mask.to(pattern.device)[:, None, :, None]
    gap = ((handed.pattern() - pattern.float()) * rows).abs().max()
    return bool(gap <= scores_tolerance(pattern.dtype))
