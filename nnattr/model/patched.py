"""What a patch does to a row: the site with the row's cell, and what that adds to the stream.

Rows are of one layer, whose place among the asked layers is ``index``. Inside a job: torch and
plain values.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.projection import projected


def patch(
    ask: SimpleNamespace, runs: SimpleNamespace, index: int, rows: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """The site in each row from ``first`` on: as it was, and with the row's cell patched."""
    own, other = (value[:, first - runs.start :] for value in (runs.own[index], runs.other[index]))
    example, unit = (rows[:, i].to(own.device) for i in (0, 2))
    units = torch.arange(ask.units, device=own.device) == unit[:, None]
    mask = covered(ask, rows, first).to(own.device)[..., None] & units[:, None]
    before = own[example]
    mask = mask.repeat_interleave(own.shape[-1] // ask.units, -1)
    return before, torch.where(mask, other[example], before)


def moved(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, index: int, rows: Tensor, first: int
) -> Tensor:
    """How each row's patch changes what is added to the residual stream from ``first`` on.

    In float32 [row, pos, d]. A patch of z or of neurons goes through the output projection.
    """
    own, other = (
        value[:, first - runs.start :].unflatten(-1, (ask.units, -1))
        for value in (runs.own[index], runs.other[index])
    )
    example, unit = (rows[:, i].to(own.device) for i in (0, 2))
    change = other[example, :, unit].float() - own[example, :, unit].float()
    where = covered(ask, rows, first).to(own.device)
    change = change.masked_fill(~where[..., None], 0)
    if not ask.through[ask.layers[index]]:
        return change
    projection, *norms = (nn.get(path) for path in ask.through[ask.layers[index]])
    change = projected(projection, change.to(own), unit, ask.units)
    if not norms:
        return change
    some, which = example.unique(return_inverse=True)
    before = projection(own[some].flatten(-2)).float()[which]
    new, old = (norms[0](value.to(own)) for value in (before + change, before))
    return new.float() - old.float()


def covered(ask: SimpleNamespace, rows: Tensor, first: int) -> Tensor:
    """Which positions from ``first`` on each row's patch covers [row, pos]."""
    return ask.spots[rows[:, 1], rows[:, 0], first:]
