"""What patched attention patterns gather: a pattern patch as a patch of z.

A head's z is its pattern times the values, so to take the source run's pattern into the base run is
to add :math:`(A^{source} - A^{base}) v^{base}` to z, at the query positions that are patched. No
attention code is touched, and the fast kernels go on serving the patched runs. Patterns are read as
`nnattr.model.patterns` reads and proves them; besides, :math:`A^{base} v^{base}` must be the base
run's z, or the model is refused (a sink or a gate between pattern and z, say).

Inside a job: torch and plain values.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.patterns import patterns
from nnattr.model.sites import read


def gathered(nn: Any, ask: SimpleNamespace, own: list[Tensor], start: int) -> Any:
    """The base run's z with the source run's patterns, for each asked layer, from ``start`` on.

    Args:
        nn: the nnsight model.
        ask: what is asked.
        own: the base run's z of the asked layers from ``start`` on [example, pos, d].
        start: the first position wanted.

    Returns:
        such tensors as ``own``, or ``{"refused": (kind, reason)}``.
    """
    wanted = [None if layer in ask.layers else [] for layer in range(len(ask.patterns))]
    both = []
    for prompts in (ask.base, ask.source):
        found, problem = patterns(nn, prompts, ask.patterns, wanted, ask.options)
        if problem is not None:
            return {"refused": problem}
        both.append(found)
    moved = []
    values = base_values(nn, ask)
    for z, pattern, other, value in zip(own, *both, values, strict=True):
        mine, theirs = (mixed(one[:, :, start:], value, ask.kv_heads) for one in (pattern, other))
        there = ask.base["mask"][:, start:].to(z.device)
        gap = (mine - z.float()).abs().amax(-1)[there].max() / z.abs().max()
        if gap > (1e-4 if torch.finfo(z.dtype).eps < 1e-6 else 0.1):
            reason = (
                "this model's heads are not their attention pattern times the values (they are off "
                f"by {float(gap):.1e} of the largest), so a patched pattern has no z. Patch 'q' "
                "and 'k' instead."
            )
            return {"refused": ("arch", reason)}
        moved.append((z.float() + theirs - mine).to(z))
    return moved


def base_values(nn: Any, ask: SimpleNamespace) -> list[Tensor]:
    """The values of the base run at all positions, for each asked layer [example, pos, d]."""
    given: dict[str, Any] = {"input_ids": ask.base["ids"], "use_cache": False, **ask.options}
    if not ask.base["mask"].all():
        given["attention_mask"] = ask.base["mask"].long()
    found = []
    with nn.trace(**given):
        with torch.no_grad():
            for layer in ask.layers:
                found.append(read(nn, ask.values[layer], ask.base["ids"].shape[1]).clone())
    return found


def mixed(pattern: Tensor, value: Tensor, kv_heads: int) -> Tensor:
    """The z [example, query_pos, d] that a pattern makes of the values, in float32.

    ``pattern`` is [example, head, query_pos, key_pos], ``value`` [example, key_pos, d]; heads next
    to each other share the values of a key/value head.
    """
    apart = value.float().unflatten(-1, (kv_heads, -1))
    grouped = pattern.float().unflatten(1, (kv_heads, -1))
    return torch.einsum("ngrqk,nkgd->nqgrd", grouped, apart).flatten(2)
