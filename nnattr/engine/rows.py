"""Patched rows: which there are, and which of them share a pass.

A cell of an example needs a row only where its patch changes something that can reach the metric.
A row begins at the first position that its patch changes, so rows share a pass with those that
begin near it.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.question import Question

#: A row runs at most this much longer than it needs, so that rows can share a pass. Less than 2, so
#: that rows of the last token alone have passes of their own.
SLACK = 1.5


class Rows:
    """Patched rows, each one cell of one example, in the order of their layers.

    Attributes (integers [row], on the CPU):
        example: whose row it is.
        spot: at which of the question's spots it is patched.
        unit: which unit of the site is patched.
        start: the first position that changes.
        layer: in which layer of the model.
        table: all of these in this order [5, row].
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.example, self.spot, self.unit, self.start, self.layer = table.unbind()

    def __len__(self) -> int:
        return len(self.example)

    def take(self, which: Any) -> Rows:
        """Some of them: a slice, a mask, or indices."""
        return Rows(self.table[:, which])

    def by_layer(self) -> list[Rows]:
        """The rows of each layer."""
        _, counts = torch.unique_consecutive(self.layer, return_counts=True)
        ends = counts.cumsum(0).tolist()
        return [
            self.take(slice(first, last)) for first, last in zip([0, *ends[:-1]], ends, strict=True)
        ]


def joined(parts: list[Rows]) -> Rows:
    """The rows of all parts."""
    return Rows(torch.cat([part.table for part in parts], 1))


def plan(question: Question, own: dict[int, Tensor], other: dict[int, Tensor], start: int) -> Rows:
    """The rows of a question: the cells whose patch changes something that can reach the metric.

    Args:
        question: what is asked.
        own: the site in the base run, by layer [example, pos, width].
        other: what is patched in, by layer [example, pos, width].
        start: the position at which these begin.
    """
    layers = question.layers
    asked = [None] * len(layers) if question.asked is None else question.asked
    parts = zip(layers, asked, strict=True)
    return joined([plan_layer(question, i, own[i] != other[i], some, start) for i, some in parts])


def plan_layer(
    question: Question, layer: int, change: Tensor, asked: Tensor | None, start: int
) -> Rows:
    """The rows of one layer.

    ``change`` [example, pos, width] says what differs, ``asked`` [unit, spot] which cells are asked
    about; None for all.
    """
    layout = question.layout
    differs = change.unflatten(-1, (question.units, -1)).any(-1).cpu()
    if layer == layout.depth - 1 and question.last_only and not layout.mixes_positions:
        differs[:, :-1] = False  # after the last layer positions do not mix
    found = []
    for spot, positions in enumerate(question.spots[:, :, start:]):
        touched = positions[..., None] & differs  # [example, pos, unit]
        if asked is not None:
            touched = touched & asked[:, spot]
        example, unit = touched.any(1).nonzero(as_tuple=True)
        first = touched.byte().argmax(1)[example, unit] + start
        same = torch.full_like
        columns = example, same(unit, spot), unit, first, same(unit, layer)
        found.append(Rows(torch.stack(columns)))
    return joined(found)


def boundaries(starts: Tensor, width: int) -> list[int]:
    """Where passes begin: few positions, such that no row runs much longer than it needs."""
    found: list[int] = []
    longest = 0.0
    for start in sorted(set(starts.tolist()), reverse=True):
        if width - start <= longest:
            found[-1] = start
        else:
            found.append(start)
            longest = SLACK * (width - start)
    return found


def by_start(rows: Rows, width: int) -> list[tuple[Rows, int]]:
    """The rows by where their passes begin, the latest first."""
    found: list[tuple[Rows, int]] = []
    stop = width
    for start in boundaries(rows.start, width):
        found.append((rows.take((rows.start >= start) & (rows.start < stop)), start))
        stop = start
    return found


def effort(question: Question, rows: Rows) -> int:
    """What these rows cost, in tokens through layers; for the progress bar."""
    tokens = question.base.width - rows.start
    return int((tokens * (question.layout.depth + 1 - rows.layer)).sum())
