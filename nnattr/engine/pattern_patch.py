"""A patched attention pattern as a patch of z.

A head's z is its pattern times the values, so to take the source run's pattern into the base run is
to add :math:`(A^{source} - A^{base}) v^{base}` to z, at the query positions that are patched. No
attention code is touched, and the fast kernels go on serving the patched runs. Patterns are read as
`nnattr.runs.patterns` reads and proves them; besides, :math:`A^{base} v^{base}` must be the base
run's z, or the model is refused (a sink or a gate between pattern and z, say).

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.question import Question
from nnattr.runs.inputs import inputs
from nnattr.runs.patterns import patterns
from nnattr.runs.places import read
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import pass_tolerance


def patched_by_patterns(
    nn: Any, question: Question, own: dict[int, Tensor], start: int
) -> dict[int, Tensor]:
    """The base run's z with the source run's patterns, by layer [example, pos, d].

    Args:
        nn: the nnsight model.
        question: what is asked.
        own: the base run's z by layer, from ``start`` on [example, pos, d].
        start: the first position wanted.

    Raises:
        RefusedError: the model gives no patterns, or its z is not its pattern times the values.
    """
    patched = {}
    values, runs = base_values(nn, question), both_patterns(nn, question)
    there, kv_heads = question.base.mask[:, start:], question.layout.kv_heads
    for (layer, z), base, source, value in zip(own.items(), *runs, values, strict=True):
        mine, theirs = (mixed(one[:, :, start:], value, kv_heads) for one in (base, source))
        require_explained(mine, z, there)
        patched[layer] = (z.float() + theirs - mine).to(z)
    return patched


def both_patterns(nn: Any, question: Question) -> list[list[Tensor]]:
    """The patterns of the base and of the source run [example, head, query_pos, key_pos].

    Of the layers that are asked about.
    """
    layout = question.layout
    heads = [None if layer in question.layers else [] for layer in range(layout.depth)]
    return [
        patterns(nn, prompts, layout.pattern_paths, heads, layout.options)
        for prompts in (question.base, question.source)
    ]


def proven_patterns(nn: Any, question: Question, own: list[Tensor]) -> list[Tensor]:
    """The source run's patterns by asked layer [example, head, query_pos, key_pos].

    Args:
        nn: the nnsight model.
        question: what is asked.
        own: the base run's z by asked layer [example, pos, d].

    Raises:
        RefusedError: as `patched_by_patterns`.
    """
    base, source = both_patterns(nn, question)
    for z, pattern, value in zip(own, base, base_values(nn, question), strict=True):
        mine = mixed(pattern, value, question.layout.kv_heads)
        require_explained(mine, z, question.base.mask)
    return source


def require_explained(mixture: Tensor, z: Tensor, mask: Tensor) -> None:
    """Refuse a model whose z [example, pos, d] is not this mixture of values."""
    gap = (mixture - z.float()).abs().amax(-1)[mask.to(z.device)].max() / z.abs().max()
    if gap > pass_tolerance(z):
        raise RefusedError(
            "arch",
            "this model's heads are not their attention pattern times the values (they are off by "
            f"{float(gap):.1e} of the largest), so a patched pattern has no z. Patch 'q' and 'k' "
            "instead.",
        )


def base_values(nn: Any, question: Question) -> list[Tensor]:
    """The values of the base run at all positions, for each asked layer [example, pos, d]."""
    layout, width = question.layout, question.base.width
    found = []
    with nn.trace(**inputs(question.base, layout.options)):
        with torch.no_grad():
            for layer in question.layers:
                found.append(read(nn, layout.value_places[layer], width).clone())
    return found


def mixed(pattern: Tensor, value: Tensor, kv_heads: int) -> Tensor:
    """The z [example, query_pos, d] that a pattern makes of the values, in float32.

    ``pattern`` is [example, head, query_pos, key_pos], ``value`` [example, key_pos, d]; heads next
    to each other share the values of a key/value head.
    """
    by_head = value.float().unflatten(-1, (kv_heads, -1))
    grouped = pattern.float().unflatten(1, (kv_heads, -1))
    return torch.einsum("ngrqk,nkgd->nqgrd", grouped, by_head).flatten(2)
