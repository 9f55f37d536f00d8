"""Attention patterns as the model computes them, read inside a job.

The fast attention kernels never hold the probabilities. Hugging Face's plain ("eager")
implementation does, and an attention module looks up which one to use at every forward pass. So a
job switches the model's configurations to eager for one pass and back again, also when that pass
fails; the client's wish for an implementation would not reach every server.

Nothing is believed: what a module returns counts as its pattern only if it has the shape [example,
head, query_pos, key_pos], if every query's row sums to one, and if no query looks at a later token
or at padding. Rows of heads with attention sinks sum to less, and some models return them without
the sink: there the pattern is made from the queries, keys and sinks that attention is given, and
must give the heads' outputs (`nnattr.runs.interface`). And a pattern counts only if the model
predicts the same as without the switch (Falcon with ALiBi does not: transformers 5.22 counts its
bias twice there). A model that fails this is refused with what was measured. A sandboxed server,
whose model lives in another process than the job, cannot be switched; models that are eager by
themselves are served there.

The cost is one pass, and one of a single prompt to compare with; and memory for [head, query_pos,
key_pos] numbers of a layer while it runs. Inside a job: torch and plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.interface import Handed, call_in, has_sinks
from nnattr.runs.logits import NO_NUMBERS
from nnattr.runs.places import raw
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import pass_tolerance, pattern_tolerance, weights_tolerance


def patterns(
    nn: Any,
    prompts: PromptBatch,
    paths: list[list[str]],
    heads: list[list[int] | None] | None = None,
    options: dict[str, Any] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """One pass: each layer's pattern [example, head, query_pos, key_pos], proven.

    Args:
        nn: the nnsight model.
        prompts: what is run.
        paths: see `attention_paths`.
        heads: the heads wanted of each layer (an empty list: the layer is not read), or None for
            all.
        options: further arguments of the pass, such as ``{"logits_to_keep": 1}``.
        reduce: what is kept of a layer's pattern; all of it, without this.

    Returns:
        the patterns, in the model's dtype, where the layer is; rows of padding are zero.

    Raises:
        RefusedError: this model's attention gives no pattern, or not where it runs.
    """
    wanted = [None] * len(paths) if heads is None else heads
    found: list[Tensor] = []
    problems: list[tuple[str, str]] = []
    before = go_eager(nn)
    try:
        with nn.trace(**inputs(prompts, options)):
            with torch.no_grad():
                for inside, some in zip(paths, wanted, strict=True):
                    if some is None or len(some):
                        pattern, problem = proven_pattern(nn, inside, prompts)
                        if problem is not None:
                            problems.append(problem)
                            break
                        rows = own_rows(pattern, prompts.mask, some)
                        found.append(rows if reduce is None else reduce(rows))
                logits = nn.output.logits[:, -1]
    finally:
        go_back(before)
    if not problems:
        problems += other_model(nn, prompts, logits, before, options)
    if problems:
        raise RefusedError(*problems[0])
    return found


def proven_pattern(
    nn: Any, inside: list[str], prompts: PromptBatch
) -> tuple[Any, tuple[str, str] | None]:
    """A layer's pattern, inside a trace, and why it is none, as (kind, reason)."""
    path = inside[0]
    if not has_sinks(nn, path):
        pattern = read_pattern(nn, inside)
        return pattern, flaw(pattern, prompts.mask, path)
    call = call_in(nn, path)
    if call is None:
        return None, ("arch", f"{path} has attention sinks, and cannot be asked how it uses them.")
    handed = Handed(*call.inputs)
    outputs = call.output[0]  # [example, pos, head, d_head]
    pattern = handed.pattern()
    made = (pattern @ handed.shared(handed.v)).transpose(1, 2)
    rows = prompts.mask.to(made.device)[..., None, None]
    gap = float(((made - outputs.float()) * rows).abs().max() / outputs.abs().max())
    if gap <= weights_tolerance(outputs.dtype):
        return pattern.to(outputs), flaw(pattern, prompts.mask, path, sinks=True)
    reason = f"{path} has attention sinks in a form that nnattr does not know (off by {gap:.1e})."
    return pattern, ("arch", reason)


def other_model(
    nn: Any,
    prompts: PromptBatch,
    logits: Tensor,
    before: list[tuple[Any, Any]],
    options: dict[str, Any] | None,
) -> list[tuple[str, str]]:
    """Whether the pass that gave the last ``logits`` was another model than the one that runs.

    Told by the longest prompt; nothing is to be told where the model is eager by itself.
    """
    if all(implementation == "eager" for _, implementation in before):
        return []
    row = int(prompts.mask.sum(1).argmax())
    one = prompts.take(slice(row, row + 1))
    with nn.trace(**inputs(one, options)):
        with torch.no_grad():
            plain = nn.output.logits[0, -1]
    gap = float((logits[row].float() - plain.float()).abs().max() / plain.float().abs().max())
    if math.isnan(gap):
        return [("backend", NO_NUMBERS)]
    if gap <= pass_tolerance(plain):
        return []
    reason = (
        "the attention implementation that gives patterns, eager, makes other predictions than the "
        f"one this model runs with (they differ by {gap:.1e} of the largest logit), so its "
        "patterns would be another model's. To study that one, load it with "
        "attn_implementation='eager'."
    )
    return [("arch", reason)]


def go_eager(nn: Any) -> list[tuple[Any, Any]]:
    """Make attention hold its probabilities, until `go_back` is given what this returns."""
    before = [(config, config._attn_implementation) for config in configurations(raw(nn))]
    for config, _ in before:
        config._attn_implementation = "eager"
    return before


def go_back(before: list[tuple[Any, Any]]) -> None:
    """Undo `go_eager`."""
    for config, implementation in before:
        config._attn_implementation = {"": implementation}  # of this one, not of those inside it


def implementations(nn: Any) -> set[str]:
    """The attention kernels that some part of the model is run with, by transformers' names."""
    return {str(config._attn_implementation) for config in configurations(raw(nn))}


def configurations(module: Any) -> list[Any]:
    """Every configuration that some part of the model reads, each once."""
    held = [getattr(part, "config", None) for part in module.modules()]
    found: dict[int, Any] = {}
    while held:
        config = held.pop(0)
        if hasattr(config, "_attn_implementation") and id(config) not in found:
            found[id(config)] = config
            held += [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    return list(found.values())


def read_pattern(nn: Any, inside: list[str]) -> Tensor | None:
    """The first thing with four axes that one of these modules returns, inside a trace."""
    for path in inside:
        output = nn.get(path).output
        if isinstance(output, tuple):
            for part in output[1:]:
                if isinstance(part, Tensor) and part.ndim == 4:
                    return part
    return None


def own_rows(pattern: Any, mask: Tensor, heads: list[int] | None) -> Tensor:
    """The chosen heads' pattern, with the rows of padding, which mean nothing, set to zero."""
    chosen = pattern if heads is None else pattern[:, heads]
    return torch.where(mask.to(chosen.device)[:, None, :, None], chosen, torch.zeros_like(chosen))


def flaw(
    pattern: Tensor | None, mask: Tensor, path: str, sinks: bool = False
) -> tuple[str, str] | None:
    """Why this is not the attention pattern of the prompts, as (kind, reason), or None if it is.

    With ``sinks`` a row may sum to less than one.
    """
    if pattern is None:
        reason = (
            f"{path} returned no attention probabilities although it was asked to compute them "
            "step by step. A sandboxed server cannot be asked; otherwise load the model with "
            "attn_implementation='eager'. (An attention module of your own returns its output and "
            "its pattern.)"
        )
        return "backend", reason
    n, width = mask.shape
    shape = tuple(pattern.shape)
    if shape[0] != n or shape[2:] != (width, width):
        reason = f"{path} returned {shape}, and a pattern of these prompts is [{n}, head, "
        return "arch", f"{reason}{width}, {width}]."
    rows = mask.to(pattern.device)
    earlier = torch.ones(width, width, dtype=torch.bool, device=rows.device).tril()
    seen = rows[:, None, :] & earlier
    off = pattern.float().sum(-1) - 1
    off = (off.clamp(min=0) if sinks else off.abs()).amax(1)[rows].max()
    ahead = pattern.abs().amax(1).masked_fill(seen, 0)[rows].max()
    limit = pattern_tolerance(pattern.dtype)
    if torch.stack([off, ahead]).isnan().any():
        return "backend", NO_NUMBERS
    if off > limit or ahead > limit:
        reason = (
            f"what {path} returned is not a causal attention pattern: a row's sum is off 1 by "
            f"{float(off):.1e}, and a query looks at a later token or at padding with "
            f"{float(ahead):.1e}."
        )
        return "arch", reason
    return None
