"""What a patch does to a row: the site with the row's cell patched, and what that adds.

Rows run from ``start`` on. Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun
from nnattr.engine.projection import projected
from nnattr.engine.question import Question
from nnattr.engine.rows import Rows
from nnattr.runs.as_built import call_inside


class Entry:
    """With what rows enter a pass at their layer; all is as rows [row, pos, ...].

    Attributes:
        stream: the residual stream that enters the layer [row, pos, d].
        value: what is done within the layer, if anything: what attention contributes besides what
            it did in the base run, in float32 [row, pos, d], or the site [row, pos, width].
    """

    def __init__(self, stream: Tensor, value: Tensor | None = None) -> None:
        self.stream = stream
        self.value = value


def enter_patched(
    nn: Any, question: Question, base: BaseRun, start: int, layer: int, rows: Rows
) -> Entry:
    """With what the rows of patched cells enter ``layer`` of a pass from ``start`` on.

    That is the layer of their cell, or the next one where the patch counts from there on.
    """
    layout, own_layer = question.layout, int(rows.layer[0])
    if layout.entry in ("before", "after"):
        return Entry(patched_site(question, base, own_layer, rows, start)[1])
    stream = of_base_run(base.streams[layer], base, rows, start)
    if layout.entry == "inside":
        return Entry(stream, patched_site(question, base, own_layer, rows, start)[1])
    change = stream_change(nn, question, base, own_layer, rows, start)
    if layout.entry == "added":
        return Entry((stream.float() + layout.scale * change).to(stream))
    # what attention contributes is scaled on its way to the stream, and resid_mid stands behind
    return Entry(stream, change / layout.scale if layout.site == "resid_mid" else change)


def of_base_run(kept: Tensor, base: BaseRun, rows: Rows, start: int) -> Tensor:
    """What is kept of the base run [example, pos, d] for these rows, from ``start`` on."""
    return kept[rows.example.to(kept.device), start - base.start :]


def patched_positions(question: Question, rows: Rows, start: int) -> Tensor:
    """Which positions from ``start`` on each row's patch covers [row, pos]."""
    return question.spots[rows.spot, rows.example, start:]


def patched_site(
    question: Question, base: BaseRun, layer: int, rows: Rows, start: int
) -> tuple[Tensor, Tensor]:
    """The site of a layer in each row [row, pos, width]: as it was, and with the cell patched."""
    own, other = (value[:, start - base.start :] for value in (base.own[layer], base.other[layer]))
    example, unit = rows.example.to(own.device), rows.unit.to(own.device)
    units = torch.arange(question.units, device=own.device) == unit[:, None]
    mask = patched_positions(question, rows, start).to(own.device)[..., None] & units[:, None]
    before = own[example]
    mask = mask.repeat_interleave(own.shape[-1] // question.units, -1)
    return before, torch.where(mask, other[example], before)


def stream_change(
    nn: Any, question: Question, base: BaseRun, layer: int, rows: Rows, start: int
) -> Tensor:
    """How each row's patch changes what is added to the residual stream.

    In float32 [row, pos, d]. A patch of z or of neurons goes through the output projection.
    """
    own, other = (
        value[:, start - base.start :].unflatten(-1, (question.units, -1))
        for value in (base.own[layer], base.other[layer])
    )
    example, unit = rows.example.to(own.device), rows.unit.to(own.device)
    change = other[example, :, unit].float() - own[example, :, unit].float()
    covered = patched_positions(question, rows, start).to(own.device)
    change = change.masked_fill(~covered[..., None], 0)
    if not question.layout.out_path[layer]:
        return change
    projection, *norms = (nn.get(path) for path in question.layout.out_path[layer])
    given = own.flatten(-2)
    change = projected(projection, given, example, change, unit, question.units)
    if not norms:
        return change
    some, which = example.unique(return_inverse=True)
    before = call_inside(projection, given[some]).float()[which]
    new, old = (norms[0](value.to(own)) for value in (before + change, before))
    return new.float() - old.float()
