r"""Edges patched together: one run in which every reader of a set of edges has an input of its own.

A reader v of the set reads

.. math:: x_v = x_v^{live} + \sum_{u: (u, v) \in set} (u^{other} - u^{live})

and nothing is frozen: what it makes of that is live for all that comes after it. So the set of all
edges into a head's query is that query patched; all edges out of a part, that part patched (where
nothing but a sum follows its write); and a circuit is the set of all edges that are not in it.

Attention is the model's own: queries, keys and values are made of their readers' inputs, by the
layer's own norm and projections, and written where the model makes them. Heads that share a key in
the model and are to have keys of their own are run as copies of a row, each with other keys, and
every head's z is taken from the copy that has its own.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.cache import cache_of_rows, inputs_from
from nnattr.engine.edge_sets import EdgeSets
from nnattr.engine.join import skip
from nnattr.engine.moved import Moved
from nnattr.engine.question import Question
from nnattr.engine.shortcuts import Scratch, one_step_gelu, read_few_logits
from nnattr.engine.wiring import Port, Wiring, front_of, made_of
from nnattr.engine.written import Runs
from nnattr.maps.linear import matrix
from nnattr.runs.edits import begin_at
from nnattr.runs.inputs import inputs
from nnattr.runs.places import read, write


class Pass:
    """One pass of joint runs: a row for each set and example, in this order.

    Attributes:
        question: what is asked.
        wiring: where parts read and write.
        runs: both plain runs.
        edges: the sets.
        moved: what senders change in it.
        copies: how many copies of every row there are, one behind the other.
        tokens: how many positions are run.
    """

    def __init__(
        self, question: Question, wiring: Wiring, runs: Runs, edges: EdgeSets, moved: Moved
    ) -> None:
        self.question = question
        self.wiring = wiring
        self.runs = runs
        self.edges = edges
        self.moved = moved
        self.copies = wiring.heads // wiring.kv_heads if edges.apart else 1
        self.tokens = question.base.width - runs.start

    @property
    def rows(self) -> int:
        """How many rows there are, copies not counted."""
        return len(self.moved.sets) * len(self.question)


def joint_logits(
    nn: Any, question: Question, wiring: Wiring, runs: Runs, edges: EdgeSets, some: slice
) -> Tensor:
    """The logits of joint runs of some of the sets [set * example, pos, token].

    From ``runs.start`` on. Layers below the first reader are those of the base run.
    """
    where = question.spots.any(0)[:, runs.start :]
    moved = Moved(edges, edges.sets[some], where, runs.base.streams[0])
    own = Pass(question, wiring, runs, edges, moved)
    first, scratch = edges.first(wiring.depth), Scratch()
    begin_at(nn, first)
    try:
        with nn.trace(**arguments(nn, own, first)):
            with torch.no_grad():
                enter(nn, own, first)
                for layer in range(first, wiring.depth):
                    run_layer(nn, own, layer, scratch)
                leave(nn, own, first)
                logits = read_few_logits(nn, question)
    finally:
        begin_at(nn)
    return logits[: own.rows]


def arguments(nn: Any, own: Pass, first: int) -> dict[str, Any]:
    """The model's arguments for the pass, which enters at layer ``first``."""
    question, layout, start = own.question, own.question.layout, own.runs.start
    example = torch.arange(len(question)).repeat(own.copies * len(own.moved.sets))
    prompts = question.base.take(example)
    if first == own.wiring.depth and question.last_only:  # the last tokens go on alone
        return inputs(prompts.cut(start), layout.options)
    attending = [example[: len(example) * (layer >= first)] for layer in range(layout.depth)]
    cache = cache_of_rows(nn, question, own.runs.prefixes, start, attending)
    return inputs_from(layout, prompts, start, cache)


def enter(nn: Any, own: Pass, first: int) -> None:
    """Let the base run's stream enter layer ``first``, with what was written below it."""
    wiring, runs, senders = own.wiring, own.runs, own.edges.writing
    sets = len(own.moved.sets)
    for place in senders(None, "input").values():
        live, other = (run.streams[0] for run in (runs.base, runs.other))
        own.moved.put(place, live.repeat(sets, 1, 1), other, 1.0)
    for layer in range(first):
        own.moved.attended(
            nn, wiring, layer, runs.base.z[layer].repeat(sets, 1, 1), runs.other.z[layer]
        )
        for place in senders(layer, "mlp").values():
            live, other = (run.mlp[layer] for run in (runs.base, runs.other))
            own.moved.put(place, live.repeat(sets, 1, 1), other, wiring.scale)
    stream = runs.base.streams[first].repeat(own.copies * sets, 1, 1)
    if first == wiring.depth:
        stream = at_the_end(nn, own, stream)
    for path in wiring.layers[:first]:
        skip(nn, path, stream, runs.base.layer_arity)
    if 0 < first < wiring.depth:
        nn.get(wiring.layers[first]).input = stream


def leave(nn: Any, own: Pass, first: int) -> None:
    """Let the logits have an input of their own."""
    if first < own.wiring.depth and own.edges.reading(None, "logits"):
        where = (own.wiring.layers[-1], "output", None)
        write(nn, where, at_the_end(nn, own, read(nn, where)))


def at_the_end(nn: Any, own: Pass, stream: Tensor) -> Tensor:
    """What the logits read, where this stream leaves the last layer."""
    rows = list(own.edges.reading(None, "logits").values())
    return shifted(stream, own.moved.of(nn, own.wiring, rows)[0], own.copies) if rows else stream


def shifted(stream: Tensor, change: Tensor, copies: int) -> Tensor:
    """The stream of all copies with a change of each row."""
    return (stream.float() + change.repeat(copies, 1, 1)).to(stream)


def run_layer(nn: Any, own: Pass, layer: int, scratch: Scratch) -> None:
    """One layer of the pass: its readers' inputs, and what its senders write."""
    wiring = own.wiring
    stream = nn.get(wiring.layers[layer]).input
    give_ports(nn, own, layer, stream)
    z = own_heads(nn, own, layer)
    own.moved.attended(nn, wiring, layer, z, own.runs.other.z[layer])
    if wiring.mlp_out:
        give_mlp(nn, own, layer, stream)
        for path in own.question.layout.gelus[layer]:
            one_step_gelu(nn, path, scratch)
        for place in own.edges.writing(layer, "mlp").values():
            live = read(nn, wiring.mlp_out[layer], own.tokens)[: own.rows]
            own.moved.put(place, live, own.runs.other.mlp[layer], wiring.scale)


def give_ports(nn: Any, own: Pass, layer: int, stream: Tensor) -> None:
    """Let heads that read an edge have queries, keys and values of their own inputs."""
    wiring, readers = own.wiring, {}
    for name in "qkv":
        if found := own.edges.reading(layer, name):
            readers[name] = found
    if not readers:
        return
    live = stream[: own.rows]
    rows = [row for found in readers.values() for row in found.values()]
    given = (live.float() + own.moved.of(nn, wiring, rows)).to(live)
    names = [name for name, found in readers.items() for _ in found]
    given = front_of(nn, wiring, layer, names, given, live)
    parts = dict(zip(readers, given.split([len(found) for found in readers.values()]), strict=True))
    made: dict[str, list[tuple[Port, list[int], Tensor]]] = {}
    for name, part in parts.items():
        port, units = wiring.ports[layer][name], list(readers[name])
        shares = own.copies if name != "q" else 1
        value = made_of(nn, port, [unit // shares for unit in units], part)
        made.setdefault(port.module, []).append((port, units, value))
    for path, values in made.items():
        give(nn, own, path, values)


def give(nn: Any, own: Pass, path: str, values: list[tuple[Port, list[int], Tensor]]) -> None:
    """Let a module return these heads' values [unit, row, pos, d_head] for them.

    It is not run where they are all that it returns.
    """
    weight = matrix(nn.get(path))
    width = sum(value.shape[0] * value.shape[-1] for _, _, value in values)
    whole = weight is not None and own.copies == 1 and width == weight.shape[1]
    if whole:
        first = values[0][2]
        output = first.new_empty(*first.shape[1:3], width)
    else:
        output = read(nn, (path, "output", None)).clone()
    by_copy = output.unflatten(0, (own.copies, -1))
    for port, units, value in values:
        columns = port.columns(output.shape[-1]).to(output.device)
        if own.copies == 1 or port.name == "q":
            by_copy[..., columns[units]] = value.movedim(0, 2).to(output)
            continue
        for unit, one in zip(units, value, strict=True):
            by_copy[unit % own.copies][..., columns[unit // own.copies]] = one.to(output)
    if whole:
        nn.get(path).skip(output)
    else:
        write(nn, (path, "output", None), output)


def own_heads(nn: Any, own: Pass, layer: int) -> Tensor:
    """A layer's z [row, pos, heads * d_head]: every head's of the copy that has its own keys."""
    where, wiring = own.wiring.z[layer], own.wiring
    z = read(nn, where)
    if own.copies > 1 and any(own.edges.reading(layer, name) for name in "kv"):
        by_copy = z.unflatten(0, (own.copies, -1)).unflatten(-1, (wiring.heads, -1))
        heads = [by_copy[head % own.copies, ..., head, :] for head in range(wiring.heads)]
        z = torch.stack(heads, -2).flatten(-2).repeat(own.copies, 1, 1)
        write(nn, where, z)
    return z[: own.rows]


def give_mlp(nn: Any, own: Pass, layer: int, stream: Tensor) -> None:
    """Let the MLP have an input of its own, if it reads an edge."""
    wiring, rows = own.wiring, list(own.edges.reading(layer, "mlp").values())
    if not rows:
        return
    path = wiring.mlp_in[layer]
    assert path is not None
    where = (path, "input", None)
    change = own.moved.of(nn, wiring, rows)[0]
    live = stream if wiring.parallel else read(nn, where, own.tokens)
    given = shifted(live, change, own.copies)
    front = wiring.fronts[layer][1]
    write(nn, where, given if front is None else nn.get(front)(given))
