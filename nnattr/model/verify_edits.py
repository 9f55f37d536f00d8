"""What edits of a model's sites do, and what left padding does: the second half of `verify_job`.

Everything here travels: torch and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.model.verify_gaps import Places, gap, stream_gaps, worst
from nnattr.runs.places import read, write


def identity(nn: Any, rows: Tensor, sites: Places) -> float:
    """The largest change of a logit when every site is set to itself: 0 if writing is exact."""
    with nn.trace(input_ids=rows, use_cache=False):
        before = nn.output.logits.clone()
    with nn.trace(input_ids=rows, use_cache=False):
        for places in zip(*sites.values(), strict=True):
            for where in places:
                write(nn, where, read(nn, where, rows.shape[1]).clone())
        after = nn.output.logits.clone()
    return float((after - before).detach().abs().max())


def edit(
    nn: Any, rows: Tensor, sites: Places, site: str, n_heads: int, scale: float
) -> dict[str, float]:
    """Negate a part of ``site`` in row *l* at layer *l*, everywhere but at the last position.

    Returns the least change of the logits over layers; the worst gap of the residual sums inside
    the edited layers; and the least change of z at the last position (for ``resid_pre``: z must
    gather from earlier positions, or it does not belong to attention).
    """
    places = list(zip(*sites.values(), strict=True))
    kept = []
    with nn.trace(input_ids=rows, use_cache=False):
        for layer, found in enumerate(places):
            values = {}
            for name, where in zip(sites, found, strict=True):
                values[name] = read(nn, where, rows.shape[1]).clone()
                if name == site:
                    turn(values[name], layer, n_heads if site == "z" else 1)
                    write(nn, where, values[name].clone())
            kept.append({name: value[[layer, -1]] for name, value in values.items()})
        logits = nn.output.logits.clone()
    gaps = [
        value
        for pair in kept
        for result, value in stream_gaps(
            {name: both[0] for name, both in pair.items()}, scale
        ).items()
        if result != site
    ]
    return {
        "changed": min(gap(logits[layer], logits[-1]) for layer in range(len(places))),
        "sums": worst(gaps),
        "gathers": min(gap(pair["z"][0, -1], pair["z"][1, -1]) for pair in kept),
    }


def head_mismatches(
    nn: Any, prompt: Tensor, places: list[Any], heads: int, sites: Places, n_heads: int
) -> int:
    """How many heads of z an edit of one head of q, k or v changes wrongly, or wrongly leaves.

    Row *i* has head *i* turned and doubled in every layer, the last row none, and all rows enter
    every layer with the same residual stream. A query head makes one z, a key/value head those of
    its group.
    """
    batch, pos = prompt.expand(heads + 1, -1), prompt.shape[1]
    own = torch.arange(n_heads) * heads // n_heads == torch.arange(heads)[:, None]
    wrong = []
    with nn.trace(input_ids=batch, use_cache=False):
        for where, entry, site in zip(places, sites["resid_pre"], sites["z"], strict=True):
            stream = read(nn, entry, pos)
            write(nn, entry, stream[-1:].expand_as(stream).clone())
            value = read(nn, where, pos).clone()
            for row, head in enumerate(value.unflatten(-1, (heads, -1)).unbind(-2)[:heads]):
                head[row].mul_(-2)  # a view
            write(nn, where, value)
            z = read(nn, site, pos).detach().float().unflatten(-1, (n_heads, -1))
            moved = (z[:-1] - z[-1:]).abs().amax((1, 3)) / z.abs().max()
            changed = moved > 4 * torch.finfo(value.dtype).eps
            wrong.append(int((changed.cpu() != own).sum()))
    return sum(wrong)


def neurons_gap(nn: Any, prompts: Tensor, places: list[Any], outs: list[Any]) -> float:
    """How far the projection that the neurons enter is from giving the MLP's contribution."""
    gaps = []
    with nn.trace(input_ids=prompts, use_cache=False):
        for (path, *_), out in zip(places, outs, strict=True):
            projected = nn.get(path).output.clone()
            inside = path == out[0] or path.startswith(f"{out[0]}.")
            entering = read(nn, out, prompts.shape[1]) if inside else nn.get(out[0]).input
            gaps.append(gap(projected.flatten(), entering.flatten()))
    return worst(gaps)


def turn(value: Tensor, row: int, n_parts: int) -> None:
    """Negate, in place, the largest of ``n_parts`` slices in ``row``, save at the last position."""
    parts = value[row, :-1].unflatten(-1, (n_parts, -1))  # a view
    largest = int(parts.float().norm(dim=(0, 2)).argmax())
    parts[:, largest].neg_()


def padding(nn: Any, prompt: Tensor, pad: int) -> float:
    """How far two prompts of unequal length, left-padded together, are from their solo runs."""
    cut = prompt.shape[0] // 2
    batch = torch.stack([prompt, prompt])
    batch[1, :cut] = pad
    mask = torch.ones_like(batch)
    mask[1, :cut] = 0
    with nn.trace(input_ids=prompt[None], use_cache=False):
        long = nn.output.logits[0].clone()
    with nn.trace(input_ids=prompt[None, cut:], use_cache=False):
        short = nn.output.logits[0].clone()
    with nn.trace(input_ids=batch, attention_mask=mask, use_cache=False):
        both = nn.output.logits.clone()
    return worst([gap(both[0], long), gap(both[1, cut:], short)])
