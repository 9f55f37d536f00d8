"""What a sender's change becomes on its way through the MLPs after it, all heads being frozen.

This is the IOI paper's path patching: between sender and receiver every head keeps the base run,
and MLPs and norms are recomputed. Attention is then what it was in the base run at every layer, so
it is not run: the senders' rows go through MLPs alone, which mix no positions.

The stream changes by another amount at every *stage*: in front of layer l it is at stage 2 l,
between its attention and its MLP at 2 l + 1, and behind all L layers at 2 L.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun
from nnattr.engine.cache import cache_of_rows, inputs_from
from nnattr.engine.ends import KINDS, PORTS, Ends, Parts
from nnattr.engine.join import Joint, contribute, join_stream
from nnattr.engine.memory import bytes_per_row
from nnattr.engine.patches import of_base_run
from nnattr.engine.question import Layout, Question
from nnattr.engine.rows import Rows
from nnattr.engine.senders import Writes, written
from nnattr.engine.shortcuts import Scratch, one_step_gelu
from nnattr.runs.edits import begin_at
from nnattr.runs.places import read, write
from nnattr.runs.portions import Budget


class Carried:
    """The changes of all senders at the stages where some receiver reads them.

    Attributes:
        numbers: an ascending number for each example, spot and sender that changes anything
            [request].
        at: their changes in float32 [request, pos, d], by stage, from the base run's start on.
    """

    def __init__(self, numbers: Tensor, at: dict[int, Tensor]) -> None:
        self.numbers = numbers
        self.at = at

    def of(self, numbers: Tensor, stage: int, first: int) -> Tensor:
        """The changes of rows with these numbers [row, pos, d], but for the ``first`` positions."""
        place = torch.searchsorted(self.numbers, numbers)
        return self.at[stage][place.to(self.at[stage].device), first:]


def number(question: Question, ends: Ends, rows: Rows, sender: Tensor) -> Tensor:
    """A number for each row's example, spot and sender."""
    return (rows.example * len(question.spots) + rows.spot) * len(ends.kind) + sender


def stages(ends: Ends, depth: int, parallel: bool) -> list[int]:
    """The stages at which receivers of some edge read, in order."""
    found = set()
    for port, layer, some in zip(
        ends.port.tolist(), ends.at.tolist(), ends.wanted.any(0), strict=True
    ):
        if some:
            found.add(stage_of(PORTS[port], layer, depth, parallel))
    return sorted(found)


def stage_of(port: str, layer: int, depth: int, parallel: bool) -> int:
    """The stage at which a receiver of a layer reads by this port."""
    if port == "logits":
        return 2 * depth
    return 2 * layer + (port == "mlp" and not parallel)


class Sending:
    """What senders' ways through MLPs are made from.

    Attributes:
        nn: the nnsight model.
        question: what is asked.
        base: the base run, with its streams and what attention returned.
        writes: what senders write.
        ends: whose senders.
        parts: where they are.
        mid: the layout of a patch between attention and MLP.
    """

    def __init__(
        self,
        nn: Any,
        question: Question,
        base: BaseRun,
        writes: Writes,
        ends: Ends,
        parts: Parts,
        mid: Layout,
    ) -> None:
        self.nn = nn
        self.question = question
        self.base = base
        self.writes = writes
        self.ends = ends
        self.parts = parts
        self.mid = mid

    def change(self, rows: Rows) -> Tensor:
        """What the rows' senders change themselves, in float32 [row, pos, d], inside a trace."""
        start = self.base.start
        covered = self.question.spots[rows.spot, rows.example, start:]
        known = self.nn, self.question, self.writes, self.ends, self.parts
        return written(*known, rows.unit, rows.example, covered, start)


def carried(sending: Sending, first: Tensor, budget: Budget) -> Carried:
    """The changes of all senders at all stages where they are read.

    Args:
        sending: what they are made from.
        first: the first position at which each sender changes anything, the prompts' width where
            there is none [example, spot, sender].
        budget: of the job.
    """
    question, base, ends = sending.question, sending.base, sending.ends
    wanted = stages(ends, question.layout.depth, sending.parts.parallel)
    example, spot, sender = (first < question.base.width).nonzero(as_tuple=True)
    layer = ends.layer[sender]
    every = Rows(torch.stack([example, spot, sender, first[example, spot, sender], layer]))
    like = base.streams[0]
    shape = len(every), *like.shape[1:]
    found = {one: torch.zeros(shape, device=like.device) for one in wanted}
    need = bytes_per_row(question, base.start, base.start)
    for one in layer.unique().tolist():
        places = (layer == one).nonzero()[:, 0]
        size = budget.fitting(len(places), need, question.base.width - base.start)
        for some in places.split(size):
            through_mlps(sending, every.take(some), one, some.to(like.device), found)
    return Carried(number(question, ends, every, sender), found)


def through_mlps(
    sending: Sending, rows: Rows, first: int, places: Tensor, found: dict[int, Tensor]
) -> None:
    """Send the rows of one layer's senders through the MLPs from there on; fill in ``found``."""
    nn, layout, base = sending.nn, sending.question.layout, sending.base
    scratch, none = Scratch(), [rows.example[:0]] * layout.depth
    cache = cache_of_rows(nn, sending.question, base.prefixes, base.start, none)
    prompts = sending.question.base.take(rows.example)
    begin_at(nn, first, False)
    try:
        with nn.trace(**inputs_from(layout, prompts, base.start, cache)):
            with torch.no_grad():
                own = sending.change(rows)
                kinds = sending.ends.kind[rows.unit].to(own.device)[:, None, None]
                head, mlp = (own * (kinds == KINDS.index(kind)) for kind in ("head", "mlp"))
                stream = of_base_run(base.streams[first], base, rows, base.start)
                entering = (stream.float() + own - head - mlp).to(stream)
                for layer in range(first, layout.depth):
                    joint = Joint(layer, rows, 1, 0, base.start)
                    if layer == first:
                        join_stream(nn, sending.mid, base, joint, entering)
                    run_layer(sending, joint, places, found, head, mlp, layer == first, scratch)
                if 2 * layout.depth in found:
                    end = read(nn, (layout.layers[-1], "output", None))
                    last = of_base_run(base.streams[-1], base, rows, base.start)
                    found[2 * layout.depth][places] = end.float() - last.float()
    finally:
        begin_at(nn)


def run_layer(
    sending: Sending,
    joint: Joint,
    places: Tensor,
    found: dict[int, Tensor],
    head: Tensor,
    mlp: Tensor,
    own: bool,
    scratch: Scratch,
) -> None:
    """One layer, inside a trace: attention as in the base run, with what its own senders change.

    ``head`` and ``mlp`` are what senders of that kind change in their ``own`` layer [row, pos, d].
    """
    nn, base, layer, mid = sending.nn, sending.base, joint.layer, sending.mid
    change = nn.get(mid.layers[layer]).input.float()
    change = change - of_base_run(base.streams[layer], base, joint.rows, joint.start).float()
    added = head if own else torch.zeros_like(head)
    contribute(nn, mid, base, joint, frozenset(), added / mid.scale)
    for stage, value in ((2 * layer, change), (2 * layer + 1, change + added)):
        if stage in found:
            found[stage][places] = value
    if sending.parts.mlp:
        for path in mid.gelus[layer]:
            one_step_gelu(nn, path, scratch)
        if own:
            where = sending.parts.mlp[layer]
            live = read(nn, where, mlp.shape[1])
            write(nn, where, (live.float() + mlp / mid.scale).to(live))
