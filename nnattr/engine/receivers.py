r"""What a receiver makes of an input that one sender has changed, all else being the base run.

The layer's own code answers. It is given :math:`x + \Delta_u`, and stopped once it has:

=================  ============================================================================
receivers          how
=================  ============================================================================
q, k, v of heads   attention is given the change; of q, k and v those that are not asked about
                   are put back as they were in the base run; what it makes of that, z, is read
an MLP             the change is added to what attention gives (in parallel blocks to the layer's
                   input), and what the MLP then adds is read
=================  ============================================================================

A head's z depends on its own q, k and v alone, so one run of a layer's attention answers for the
queries (or keys, or values) of all its heads at once; also for a key/value head that several share,
and for the key that only one of these would see. Norms, rotary turns, windows, caps and sinks are
the model's own. Where a norm runs over the queries of all heads (OLMo 2), it has seen the change in
all of them.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun
from nnattr.engine.cache import cache_of_rows, inputs_from
from nnattr.engine.ends import PORTS, Ends, Parts
from nnattr.engine.join import Joint, contribute, join_stream
from nnattr.engine.patches import of_base_run
from nnattr.engine.question import Layout, Question, sandboxed
from nnattr.engine.rows import Rows
from nnattr.engine.senders import Writes, written
from nnattr.engine.shortcuts import Scratch, one_step_gelu
from nnattr.engine.through_mlps import Carried, number
from nnattr.runs.edits import begin_at, edited_layers
from nnattr.runs.places import read, write


class Asked:
    """Senders whose change is given to one layer, at the positions from ``start`` on.

    Attributes:
        layer: which layer.
        rows: of each its example and spot; its unit is the sender.
        port: what reads it, an index into ``PORTS`` [row].
        start: the first position.
    """

    def __init__(self, layer: int, rows: Rows, port: Tensor, start: int) -> None:
        self.layer = layer
        self.rows = rows
        self.port = port
        self.start = start

    def take(self, some: slice) -> Asked:
        """Some of them."""
        return Asked(self.layer, self.rows.take(some), self.port[some], self.start)


class Graphed:
    """What is known before any edge is: both runs, and the edges that are asked for.

    Attributes:
        nn: the nnsight model.
        question: what is asked; its site is z.
        base: the base run.
        writes: what senders write in both.
        ends: which edges.
        parts: where their ends are.
        mid: the layout of a patch between attention and MLP.
        by_mlps: whether MLPs between sender and receiver are recomputed, or frozen as heads are.
        carried: what senders' changes become on their way through these; None until that is known.
    """

    def __init__(
        self,
        nn: Any,
        question: Question,
        base: BaseRun,
        ends: Ends,
        parts: Parts,
        mid: Layout,
        by_mlps: bool,
    ) -> None:
        self.nn = nn
        self.question = question
        self.base = base
        self.ends = ends
        self.parts = parts
        self.mid = mid
        self.writes = Writes(base, question.layout.scale)
        self.by_mlps = by_mlps
        self.carried: Carried | None = None

    def change(self, rows: Rows, sender: Tensor, start: int, stage: int) -> Tensor:
        """What the senders of rows change, in float32 [row, pos, d], inside a trace.

        ``stage`` says where that is read, see `nnattr.engine.through_mlps`; it is the same at all
        of them unless it is carried through MLPs.
        """
        if self.carried is not None:
            numbers = number(self.question, self.ends, rows, sender)
            return self.carried.of(numbers, stage, start - self.base.start)
        covered = self.question.spots[rows.spot, rows.example, start:]
        return written(
            self.nn,
            self.question,
            self.writes,
            self.ends,
            self.parts,
            sender,
            rows.example,
            covered,
            start,
        )


def made_by_heads(known: Graphed, asked: Asked) -> Tensor:
    """How the z of all heads of a layer changes, in float32 [row, pos, width]."""
    nn, base, layer, rows = known.nn, known.base, asked.layer, asked.rows
    tokens = known.question.base.width - asked.start
    begin_at(nn, layer)
    try:
        with nn.trace(**inputs_of(known, asked)) as tracer:
            with torch.no_grad():
                enter_changed(known, asked)
                put_back(known, asked)
                z = read(nn, known.question.layout.places[layer], tokens).clone()
                if stops(known):
                    tracer.stop()
    finally:
        begin_at(nn)
    return z.float() - of_base_run(base.own[layer], base, rows, asked.start).float()


def made_by_mlp(known: Graphed, asked: Asked) -> Tensor:
    """How what a layer's MLP adds to the stream changes, in float32 [row, pos, d]."""
    nn, base, layer, rows = known.nn, known.base, asked.layer, asked.rows
    tokens, scratch = known.question.base.width - asked.start, Scratch()
    begin_at(nn, layer, known.parts.parallel)
    try:
        with nn.trace(**inputs_of(known, asked)) as tracer:
            with torch.no_grad():
                if known.parts.parallel:
                    enter_changed(known, asked)
                else:
                    contribute_changed(known, asked)
                for path in known.question.layout.gelus[layer]:
                    one_step_gelu(nn, path, scratch)
                added = read(nn, known.parts.mlp[layer], tokens).clone()
                if stops(known):
                    tracer.stop()
    finally:
        begin_at(nn)
    before = of_base_run(base.more["mlp"][layer], base, rows, asked.start)
    return added.float() - before.float()


def stops(known: Graphed) -> bool:
    """Whether a run may end before the model does: not under edits, which wait for all layers."""
    return not edited_layers(known.nn) and not sandboxed(known.nn, known.question.layout)


def inputs_of(known: Graphed, asked: Asked) -> dict[str, Any]:
    """The model's arguments for a run of these rows, of which one layer looks back."""
    layout, example = known.question.layout, asked.rows.example
    whole = not stops(known)
    attending = [
        example if whole or layer == asked.layer else example[:0] for layer in range(layout.depth)
    ]
    cache = cache_of_rows(known.nn, known.question, known.base.prefixes, asked.start, attending)
    return inputs_from(layout, known.question.base.take(example), asked.start, cache)


def enter_changed(known: Graphed, asked: Asked) -> None:
    """Let a layer begin with the base run's stream and each sender's change, inside a trace."""
    base, rows = known.base, asked.rows
    stream = of_base_run(base.streams[asked.layer], base, rows, asked.start)
    change = known.change(rows, rows.unit, asked.start, 2 * asked.layer)
    joint = Joint(asked.layer, rows, 1, 0, asked.start)
    entering = (stream.float() + change).to(stream)
    join_stream(known.nn, known.question.layout, base, joint, entering)


def contribute_changed(known: Graphed, asked: Asked) -> None:
    """Let each sender's change come with what attention gives in the base run, inside a trace."""
    base, rows, layout = known.base, asked.rows, known.mid
    stream = of_base_run(base.streams[asked.layer], base, rows, asked.start)
    change = known.change(rows, rows.unit, asked.start, 2 * asked.layer + 1)
    joint = Joint(asked.layer, rows, 1, 0, asked.start)
    join_stream(known.nn, layout, base, joint, stream)
    contribute(known.nn, layout, base, joint, frozenset(), change / layout.scale)


def put_back(known: Graphed, asked: Asked) -> None:
    """Of q, k and v give back to each row what is not asked of it, inside a trace."""
    paths: dict[str, list[str]] = {}
    for name, places in known.parts.ports.items():
        paths.setdefault(places[asked.layer][0], []).append(name)
    for path, names in paths.items():
        if len(names) == 1:
            put_back_one(known, asked, names[0])
        else:
            put_back_fused(known, asked, path, names)


def kept(known: Graphed, asked: Asked, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows keep their own q, k or v [row, 1, 1], and the base run's [row, pos, width]."""
    keeps = torch.tensor([name in port for port in PORTS])[asked.port]
    base = of_base_run(known.base.more[name][asked.layer], known.base, asked.rows, asked.start)
    return keeps[:, None, None].to(like.device), base.to(like)


def put_back_one(known: Graphed, asked: Asked, name: str) -> None:
    """`put_back` of what a module of its own makes."""
    where = known.parts.ports[name][asked.layer]
    live = read(known.nn, where, known.question.base.width - asked.start)
    keeps, base = kept(known, asked, name, live)
    write(known.nn, where, torch.where(keeps, live, base))


def put_back_fused(known: Graphed, asked: Asked, path: str, names: list[str]) -> None:
    """`put_back` of what one module makes together."""
    module = known.nn.get(path)
    whole = module.output.clone()
    for name in names:
        groups, first, last = known.parts.ports[name][asked.layer][2]
        live = whole.unflatten(-1, (groups, -1))[..., first:last]
        keeps, base = kept(known, asked, name, live)
        base = base.unflatten(-1, (groups, -1))
        live.copy_(torch.where(keeps[..., None], live, base))
    module.output = whole
