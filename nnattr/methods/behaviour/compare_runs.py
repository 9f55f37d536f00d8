r"""How differently does a model continue two prompts?

Between next-token logits :math:`\ell^a, \ell^b` with distributions :math:`p^a, p^b`:

.. math:: \|\ell^a - \ell^b\|_2, \qquad \sum_v p^a_v \log \frac{p^a_v}{p^b_v}, \qquad
          \frac{|\mathrm{top}_k^a \cap \mathrm{top}_k^b|}{k}

The norm counts every token of the vocabulary alike, also those that neither prompt makes likely,
and a constant added to all logits: prefer the divergence. Position by position two texts can only
be compared if they have the same tokens in number; at their ends, always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import Positive, checked
from nnattr.errors import TaskError
from nnattr.jobs.record import as_ids, as_task, provenance_of
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, columns, texts_and_tokens
from nnattr.results import Comparison
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import require_numbers, take
from nnattr.runs.portions import Portions
from nnattr.tasks.positions import labels
from nnattr.tokens import Tokens, pad_id

Strings: TypeAlias = tuple[str, ...]


@checked
def compare_runs(
    model: Model,
    a: Prompts,
    b: Prompts,
    *,
    positions: Literal["last", "each"] = "last",
    top_k: Positive = 10,
) -> Comparison:
    """Distances between the next-token logits of prompts ``a`` and prompts ``b``, pair by pair.

    Args:
        model: as `nnattr.load` gives it.
        a: one prompt or several, a task, whose clean prompts are read, or tokens.
        b: as many as ``a``.
        positions: ``"last"`` compares what follows the whole prompts; ``"each"`` compares position
            by position, for pairs of equal length.
        top_k: among how many likeliest tokens to count the shared ones.

    Raises:
        TaskError: different numbers of prompts, or pairs of unequal length with ``"each"``.

    Cost: one forward pass of each side; only the distances come back.
    """
    (left, one), (right, other) = (
        texts_and_tokens(model, a, what="a", alone=True),
        texts_and_tokens(model, b, what="b", alone=True),
    )
    if len(left) != len(right):
        raise TaskError(
            f"a has {len(left)} prompts and b has {len(right)}; they are compared in pairs."
        )
    strings = (*one.strings, *other.strings)
    both = Tokens.from_rows([*one.rows, *other.rows], strings, pad_id(model.tokenizer))
    n = len(left)
    if positions == "each":
        _aligned(left, both.strings[:n], both.strings[n:])
    at, present = columns([*left, *right], [*left, *right], both, positions)
    logits = at.shape[1] * model.vocab_size
    payload = {
        "a": model.batch(Tokens(both.ids[:n], both.mask[:n], both.strings[:n]), a),
        "b": model.batch(Tokens(both.ids[n:], both.mask[n:], both.strings[n:]), b),
        "columns": at[:n],
        "top_k": top_k,
        "portions": model.portions(both.ids.shape[1], floats=6 * logits),  # of both sides
    }
    outcome = model.run(compare_job, payload, label="comparing runs")
    shown = {
        name: outcome.values[name].masked_fill(~present[:n], float("nan"))
        for name in ("norm", "kl", "overlap")
    }
    task = replace(as_task(None, [*left, *right], both), from_ids=as_ids(a) or as_ids(b))
    data = xr.Dataset(
        {key: (("example", "pos"), found.numpy()) for key, found in shown.items()},
        {"example": np.arange(n)},
    )
    each = positions == "each"
    data = data.assign_coords(pos=list(labels(task))) if each else data.isel(pos=0, drop=True)
    given = {"a": a, "b": b, "positions": positions, "top_k": top_k}
    made = provenance_of(model, task, method="compare_runs", arguments=given, outcome=outcome)
    return Comparison(data, made, left, right, top_k)


def compare_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The distances [example, pos]."""
    both = [PromptBatch(**payload[side]) for side in ("a", "b")]
    columns = payload["columns"]
    portions = Portions(nn, tick, total=len(columns), **payload["portions"])
    for some in portions:
        with portions.attempt():
            a, b = (logits_at(nn, side.take(some), columns[some]) for side in both)
            portions.keep(distances(a, b, payload["top_k"]))
            portions.tick(1, 1)
    return portions.joined()


def logits_at(nn: Any, prompts: PromptBatch, columns: Tensor) -> Tensor:
    """The logits [example, pos, d_vocab] at the columns, in float32."""
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            logits = take(nn.output.logits, columns).float()
    require_numbers(logits[:, -1])
    return logits


def distances(a: Tensor, b: Tensor, k: int) -> dict[str, Tensor]:
    """Norm, divergence and overlap of two sets of logits [..., d_vocab]."""
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    k = min(k, a.shape[-1])
    one, other = a.topk(k, -1).indices, b.topk(k, -1).indices
    shared = (one[..., :, None] == other[..., None, :]).any(-1)
    return {
        "norm": (a - b).norm(dim=-1),
        "kl": (p.exp() * (p - q)).sum(-1),
        "overlap": shared.float().mean(-1),
    }


def _aligned(prompts: Strings, one: Sequence[Strings], other: Sequence[Strings]) -> None:
    """Refuse pairs whose positions do not correspond."""
    for prompt, left, right in zip(prompts, one, other, strict=True):
        if len(left) != len(right):
            raise TaskError(
                f"{prompt!r} has {len(left)} tokens and its counterpart {len(right)}: position by "
                "position they are not comparable. Use positions='last'."
            )
