"""Edges as rows: which there are, with what they enter a pass, and as whole passes.

A row is one edge of one example, and enters at its receiver's layer, whatever the sender:

=========================  ====================================================================
receiver                   the row enters with
=========================  ====================================================================
q, k, v of a head          the change of z of the heads concerned, behind the output projection
an MLP                     the stream behind its layer, and the change of what it adds
the logits                 the stream behind the last layer, and what the sender changes
=========================  ====================================================================

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.edge_full import full_logits
from nnattr.engine.ends import PORTS, Ends
from nnattr.engine.memory import bytes_per_row
from nnattr.engine.patches import Entry, of_base_run
from nnattr.engine.projection import projected
from nnattr.engine.question import Question
from nnattr.engine.receivers import Asked, Graphed, made_by_heads, made_by_mlp
from nnattr.engine.rows import Rows
from nnattr.runs.portions import Budget

#: The ports of heads, and what reads the stream by itself.
HEADS, STREAM = ("q", "k", "v", "qk"), ("mlp", "logits")
#: The ports of which, in the last layer, only the last position's input can reach the metric.
IN_PLACE = ("q", "mlp", "logits")


class Reach:
    """At which positions senders change something, by spot.

    Attributes:
        first: the first such position, the prompts' width where there is none
            [example, spot, sender].
        last: whether the last position is one [example, spot, sender].
    """

    def __init__(self, question: Question, differs: Tensor, start: int) -> None:
        """From where senders differ at all [example, pos, sender], from ``start`` on.

        Before the first token that differs they cannot: experts, which are given the tokens of all
        prompts at once, may round these otherwise.
        """
        behind = (question.base.ids != question.source.ids).int().cummax(1).values[:, start:] > 0
        spots = question.spots[:, :, start:].transpose(0, 1)  # [example, spot, pos]
        touched = (spots & behind[:, None])[..., None] & differs[:, None]
        first = touched.byte().argmax(2) + start
        self.first = torch.where(touched.any(2), first, question.base.width)
        self.last = touched[:, :, -1]


def plan(question: Question, ends: Ends, reach: Reach, ports: tuple[str, ...]) -> Rows:
    """The rows of edges into these ports whose change can reach the metric, layer by layer."""
    width, last_layer = question.base.width, question.layout.depth - 1
    senders, receivers = ends.shape
    narrow = (ends.at == last_layer) & question.last_only
    in_place = torch.tensor([port in IN_PLACE for port in PORTS])[ends.port] & narrow
    asked = torch.tensor([port in ports for port in PORTS])[ends.port]
    there = (reach.first < width)[..., None].expand(-1, -1, -1, receivers)
    there = torch.where(in_place, reach.last[..., None], there) & (ends.wanted & asked)
    example, spot, sender, receiver = there.nonzero(as_tuple=True)
    first = torch.where(narrow[receiver], width - 1, reach.first[example, spot, sender])
    edge = sender * receivers + receiver
    table = torch.stack([example, spot, edge, first, ends.at[receiver]])
    return Rows(table[:, table[4].argsort(stable=True)])


class StreamEdges:
    """Rows of edges into MLPs and the logits.

    Attributes:
        known: what they are made from.
        reach: where senders change something.
        budget: of the job.
        made: what MLPs add more, by layer: the senders asked about, in order, their change
            [sender, pos, d], and the position at which that begins.
    """

    ports = STREAM

    def __init__(self, known: Graphed, reach: Reach, budget: Budget) -> None:
        self.known = known
        self.reach = reach
        self.budget = budget
        self.made: dict[int, tuple[Tensor, Tensor, int]] = {}

    def prepare(self, rows: Rows, start: int) -> None:
        """Ask the MLPs."""
        port = self.known.ends.port[self.known.ends.receiver(rows.unit)]
        self.made = answers(self.known, self.reach, self.budget, rows.take(port == PORTS.index("mlp")), start)

    def enter(self, start: int, layer: int, rows: Rows) -> Entry:
        """With what rows enter behind their receiver's layer, inside a trace."""
        known, own_layer = self.known, int(rows.layer[0])
        base, ends = known.base, known.ends
        stream = of_base_run(base.streams[layer], base, rows, start)
        into_logits = ends.port[ends.receiver(rows.unit)] == PORTS.index("logits")
        change = torch.zeros_like(stream, dtype=torch.float32)
        if into_logits.any():
            some = rows.take(into_logits)
            change[into_logits.to(change.device)] = known.change(some, ends.sender(some.unit), start)
        if not into_logits.all():
            some = rows.take(~into_logits)
            made = answer(known, self.made[own_layer], some, start)
            change[~into_logits.to(change.device)] = known.question.layout.scale * made
        return Entry((stream.float() + change).to(stream))

    def full(self, rows: Rows, start: int) -> Tensor:
        """The logits of each row [row, pos, token] from ``start`` on, by all layers."""
        return full_logits(self.known, rows, start)


class HeadEdges:
    """Rows of edges into queries, keys and values; its attributes are those of `StreamEdges`."""

    ports = HEADS

    def __init__(self, known: Graphed, reach: Reach, budget: Budget) -> None:
        self.known = known
        self.reach = reach
        self.budget = budget
        self.made: dict[int, tuple[Tensor, Tensor, int]] = {}

    def prepare(self, rows: Rows, start: int) -> None:
        """Ask attention."""
        self.made = answers(self.known, self.reach, self.budget, rows, start)

    def enter(self, start: int, layer: int, rows: Rows) -> Entry:
        """With what rows enter their receiver's layer, or behind it, inside a trace."""
        known, own_layer = self.known, int(rows.layer[0])
        base, layout = known.base, known.question.layout
        stream = of_base_run(base.streams[layer], base, rows, start)
        change = self.projected(own_layer, rows, start)
        if layout.entry == "added":
            return Entry((stream.float() + layout.scale * change).to(stream))
        return Entry(stream, change)

    def projected(self, layer: int, rows: Rows, start: int) -> Tensor:
        """What the change of z of each row's heads makes behind the projection [row, pos, d]."""
        known = self.known
        own = known.base.own[layer][:, start - known.base.start :]
        projection = known.nn.get(known.parts.projections[layer])
        receiver = known.ends.receiver(rows.unit)
        keys, made, first = self.made[layer]
        at = torch.searchsorted(keys, requests(known, rows)).to(made.device)
        found = torch.zeros_like(of_base_run(known.base.streams[layer], known.base, rows, start), dtype=torch.float32)
        for parts in known.ends.parts[receiver].unique().tolist():
            some = (known.ends.parts[receiver] == parts).nonzero()[:, 0].to(made.device)
            unit = known.ends.part[receiver].to(made.device)[some]
            change = made[:, start - first :].unflatten(-1, (parts, -1))[at[some], :, unit]
            example = rows.example.to(made.device)[some]
            found[some] = projected(projection, own, example, change, unit, parts)
        return found

    def full(self, rows: Rows, start: int) -> Tensor:
        """The logits of each row [row, pos, token] from ``start`` on, by all layers."""
        return full_logits(self.known, rows, start)


def requests(known: Graphed, rows: Rows) -> Tensor:
    """A number for what a layer is asked for each row: an example, a spot, a sender and a port."""
    ends = known.ends
    sender, port = ends.sender(rows.unit), ends.port[ends.receiver(rows.unit)]
    where = (rows.example * len(known.question.spots) + rows.spot) * ends.shape[0] + sender
    return where * len(PORTS) + port


def answers(
    known: Graphed, reach: Reach, budget: Budget, rows: Rows, start: int
) -> dict[int, tuple[Tensor, Tensor, int]]:
    """What receivers make of the changed input of these rows, by layer (see `StreamEdges.made`)."""
    found = {}
    for some in rows.by_layer() if len(rows) else []:
        keys = requests(known, some).unique()
        asked = asked_of(known, reach, keys, int(some.layer[0]), start)
        made = made_by_mlp if PORTS[int(asked.port[0])] == "mlp" else made_by_heads
        need = bytes_per_row(known.question, asked.start, known.base.start)
        size = budget.fitting(len(keys), need, known.question.base.width - asked.start)
        values = [made(known, asked.take(slice(at, at + size))) for at in range(0, len(keys), size)]
        found[asked.layer] = keys, torch.cat(values), asked.start
    return found


def asked_of(known: Graphed, reach: Reach, keys: Tensor, layer: int, start: int) -> Asked:
    """What a layer is asked, by its numbers."""
    where, port = keys // len(PORTS), keys % len(PORTS)
    where, sender = where // known.ends.shape[0], where % known.ends.shape[0]
    example, spot = where // len(known.question.spots), where % len(known.question.spots)
    first = reach.first[example, spot, sender]
    in_place = torch.tensor([name in IN_PLACE for name in PORTS])[port]
    if layer == known.question.layout.depth - 1 and known.question.last_only:
        first = torch.where(in_place, known.question.base.width - 1, first)
    begin = min(start, int(first.min()))
    same = torch.full_like
    table = torch.stack([example, spot, sender, first, same(first, layer)])
    return Asked(layer, Rows(table), port, begin)


def answer(known: Graphed, made: tuple[Tensor, Tensor, int], rows: Rows, start: int) -> Tensor:
    """What was answered for each row [row, pos, width], from ``start`` on."""
    keys, values, first = made
    at = torch.searchsorted(keys, requests(known, rows)).to(values.device)
    return values[at, start - first :]
