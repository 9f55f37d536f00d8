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
    receivers = len(ends.port)
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


class Answers:
    """What receivers make of their changed input, asked before a pass of the rows that need it.

    Attributes:
        known: what edges are made from.
        reach: where senders change something.
        budget: of the job.
        made: by layer the numbers of what was asked, in order (`requests`), what the receivers then
            make more [request, pos, width], and the position at which that begins.
    """

    def __init__(self, known: Graphed, reach: Reach, budget: Budget) -> None:
        self.known = known
        self.reach = reach
        self.budget = budget
        self.made: dict[int, tuple[Tensor, Tensor, int]] = {}

    def ask(self, rows: Rows, start: int) -> None:
        """Ask what rows of a pass from ``start`` on need, and forget what others did."""
        self.made = {}
        for some in rows.by_layer() if len(rows) else []:
            layer, numbers = int(some.layer[0]), requests(self.known, some).unique()
            asked = asked_of(self.known, self.reach, numbers, layer, start)
            made = made_by_mlp if PORTS[int(asked.port[0])] == "mlp" else made_by_heads
            size = self.fitting(len(numbers), asked.start)
            parts = [asked.take(slice(at, at + size)) for at in range(0, len(numbers), size)]
            found = torch.cat([made(self.known, part) for part in parts])
            self.made[layer] = numbers, found, asked.start

    def fitting(self, count: int, start: int) -> int:
        """How many rows of a run from ``start`` on fit."""
        question = self.known.question
        need = bytes_per_row(question, start, self.known.base.start)
        return self.budget.fitting(count, need, question.base.width - start)

    def of(self, layer: int, rows: Rows, start: int) -> tuple[Tensor, Tensor]:
        """The answers of a layer from ``start`` on [request, pos, width], and each row's [row]."""
        numbers, made, first = self.made[layer]
        at = torch.searchsorted(numbers, requests(self.known, rows))
        return made[:, start - first :], at.to(made.device)


class StreamEdges:
    """Rows of edges into MLPs and the logits: see `nnattr.engine.cells.Cells`.

    Attributes:
        known: what they are made from.
        answers: of MLPs.
    """

    ports = STREAM

    def __init__(self, known: Graphed, answers: Answers) -> None:
        self.known = known
        self.answers = answers

    def into(self, rows: Rows, port: str) -> Tensor:
        """Which rows' receivers read by a port [row], bool."""
        ends = self.known.ends
        return ends.port[ends.receiver(rows.unit)] == PORTS.index(port)

    def prepare(self, rows: Rows, start: int) -> None:
        """Ask the MLPs."""
        self.answers.ask(rows.take(self.into(rows, "mlp")), start)

    def enter(self, start: int, layer: int, rows: Rows) -> Entry:
        """With what rows enter behind their receiver's layer, inside a trace."""
        known, own_layer = self.known, int(rows.layer[0])
        stream = of_base_run(known.base.streams[layer], known.base, rows, start)
        change = torch.zeros_like(stream, dtype=torch.float32)
        direct = self.into(rows, "logits")
        if direct.any():
            some = rows.take(direct)
            sender = known.ends.sender(some.unit)
            change[direct.to(change.device)] = known.change(
                some, sender, start, 2 * known.question.layout.depth
            )
        if not direct.all():
            made, at = self.answers.of(own_layer, rows.take(~direct), start)
            change[~direct.to(change.device)] = known.question.layout.scale * made[at]
        return Entry((stream.float() + change).to(stream))

    def full(self, rows: Rows, start: int) -> Tensor:
        """The logits of each row [row, pos, token] from ``start`` on, by all layers."""
        return full_logits(self.known, rows, start)


class HeadEdges:
    """Rows of edges into queries, keys and values: see `nnattr.engine.cells.Cells`.

    Attributes:
        known: what they are made from.
        answers: of attention.
    """

    ports = HEADS

    def __init__(self, known: Graphed, answers: Answers) -> None:
        self.known = known
        self.answers = answers

    def prepare(self, rows: Rows, start: int) -> None:
        """Ask attention."""
        self.answers.ask(rows, start)

    def enter(self, start: int, layer: int, rows: Rows) -> Entry:
        """With what rows enter their receiver's layer, or behind it, inside a trace."""
        base, layout = self.known.base, self.known.question.layout
        stream = of_base_run(base.streams[layer], base, rows, start)
        change = self.projected(int(rows.layer[0]), rows, start, stream)
        if layout.entry == "added":
            return Entry((stream.float() + layout.scale * change).to(stream))
        return Entry(stream, change)

    def projected(self, layer: int, rows: Rows, start: int, like: Tensor) -> Tensor:
        """What the change of z of each row's heads makes behind the projection [row, pos, d]."""
        base, ends = self.known.base, self.known.ends
        receiver, own = ends.receiver(rows.unit), base.own[layer][:, start - base.start :]
        projection = self.known.nn.get(self.known.parts.projections[layer])
        made, at = self.answers.of(layer, rows, start)
        found = torch.zeros_like(like, dtype=torch.float32)
        for parts in ends.parts[receiver].unique().tolist():
            some = (ends.parts[receiver] == parts).nonzero()[:, 0]
            unit, here = ends.part[receiver[some]].to(made.device), some.to(made.device)
            change = made.unflatten(-1, (parts, -1))[at[here], :, unit]
            example = rows.example[some].to(made.device)
            found[here] = projected(projection, own, example, change, unit, parts)
        return found

    def full(self, rows: Rows, start: int) -> Tensor:
        """The logits of each row [row, pos, token] from ``start`` on, by all layers.

        Keys and values change before a row begins where the last layer's last position alone is
        wanted, so these passes begin where the two runs first differ.
        """
        first = min(start, self.known.base.start)
        logits = full_logits(self.known, rows, first)
        return logits[:, -(self.known.question.base.width - start) :]


def requests(known: Graphed, rows: Rows) -> Tensor:
    """A number for what a layer is asked for each row: an example, a spot, a sender and a port."""
    ends = known.ends
    sender, port = ends.sender(rows.unit), ends.port[ends.receiver(rows.unit)]
    where = (rows.example * len(known.question.spots) + rows.spot) * ends.shape[0] + sender
    return where * len(PORTS) + port


def asked_of(known: Graphed, reach: Reach, numbers: Tensor, layer: int, start: int) -> Asked:
    """What a layer is asked, by its numbers, for a pass from ``start`` on."""
    where, port = numbers // len(PORTS), numbers % len(PORTS)
    where, sender = where // known.ends.shape[0], where % known.ends.shape[0]
    example, spot = where // len(known.question.spots), where % len(known.question.spots)
    first = reach.first[example, spot, sender]
    if layer == known.question.layout.depth - 1 and known.question.last_only:
        in_place = torch.tensor([name in IN_PLACE for name in PORTS])[port]
        first = torch.where(in_place, known.question.base.width - 1, first)
    table = torch.stack([example, spot, sender, first, torch.full_like(first, layer)])
    return Asked(layer, Rows(table), port, min(start, int(first.min())))
