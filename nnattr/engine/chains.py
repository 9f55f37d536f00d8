r"""The effect along single paths: each part on a path reads what the one before it changed.

For a path :math:`u \to v_1 \to \dots \to logits` the first change is what u writes in the other run
less what it writes in the base run. Every part on the way reads the base run's stream and the
change before it, and the next change is what it then writes less what it writes in the base run.
All else keeps the base run, the other heads that share a key on the way as well; so only the layers
of parts on the way are run, and in them the stream stays the base run's.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.cache import cache_of_rows, inputs_from
from nnattr.engine.edge_sets import PlainPart
from nnattr.engine.join import skip
from nnattr.engine.projection import projected
from nnattr.engine.question import Question
from nnattr.engine.shortcuts import read_few_logits
from nnattr.engine.variants import variants_job
from nnattr.engine.wiring import Wiring, front_of, made_of
from nnattr.engine.written import Runs
from nnattr.runs.as_built import call_inside
from nnattr.runs.edits import begin_at
from nnattr.runs.places import read, write

#: A path: the sender, then what reads, the logits last, each in plain values.
Chain = list[PlainPart]


def chains_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Both baselines, and the effect along each path [example, path, 1, 1].

    Besides a question's, a payload has ``wiring`` and ``chains`` (see `Chain`).
    """
    return variants_job(nn, tick, payload, payload["chains"], chain_logits, 8)


class Walk:
    """One pass of paths: a row for each path and example, in this order.

    Attributes:
        question: what is asked.
        wiring: where parts read and write.
        runs: both plain runs.
        chains: the paths.
        carried: what the last part of each path that was passed changes, in float32
            [path, example, pos, d].
    """

    def __init__(
        self, question: Question, wiring: Wiring, runs: Runs, chains: list[Chain], carried: Tensor
    ) -> None:
        self.question = question
        self.wiring = wiring
        self.runs = runs
        self.chains = chains
        self.carried = carried

    def passing(self, layer: int, ports: str) -> dict[int, PlainPart]:
        """By path the part in a layer that reads by one of these ports, or the ``"mlp"``."""
        return {
            chain: part
            for chain, parts in enumerate(self.chains)
            for part in parts[1:]
            if part[1] == layer and (part[0] == "mlp") == (ports == "mlp")
            if ports == "mlp" or ports in (part[3] or "")
        }

    def each(self, kept: Tensor) -> Tensor:
        """What is kept of every example, for every row."""
        return kept.repeat(len(self.chains), 1, 1)


def chain_logits(
    nn: Any, question: Question, wiring: Wiring, runs: Runs, chains: list[Chain], some: slice
) -> Tensor:
    """The logits of some of the paths [path * example, pos, token], from ``runs.start`` on."""
    chains = chains[some]
    carried = torch.zeros(len(chains), *runs.base.streams[0].shape)
    walk = Walk(question, wiring, runs, chains, carried.to(runs.base.streams[0].device))
    wanted = {part[1] for chain in chains for part in chain[1:] if part[1] is not None}
    example = torch.arange(len(question)).repeat(len(chains))
    attending = [example[: len(example) * (at in wanted)] for at in range(wiring.depth)]
    cache = cache_of_rows(nn, question, runs.prefixes, runs.start, attending)
    begin_at(nn, min(wanted, default=wiring.depth))
    try:
        with nn.trace(
            **inputs_from(question.layout, question.base.take(example), runs.start, cache)
        ):
            with torch.no_grad():
                send(nn, walk)
                for layer in range(wiring.depth):
                    walk_layer(nn, walk, layer, layer in wanted)
                logits = read_few_logits(nn, question)
    finally:
        begin_at(nn)
    return logits


def send(nn: Any, walk: Walk) -> None:
    """Every path's first change: of what its sender writes, where positions count."""
    base, other = walk.runs.base, walk.runs.other
    where = walk.question.spots.any(0)[:, walk.runs.start :, None]
    for chain, parts in enumerate(walk.chains):
        kind, layer, head, _ = parts[0]
        layer, head = layer or 0, head or 0
        if kind == "head":
            change = of_head(nn, walk, layer, head, other.z[layer])
        elif kind == "mlp":
            change = (other.mlp[layer].float() - base.mlp[layer].float()) * walk.wiring.scale
        else:
            change = other.streams[0].float() - base.streams[0].float()
        walk.carried[chain] = change * where.to(change.device)


def of_head(nn: Any, walk: Walk, layer: int, head: int, z: Tensor) -> Tensor:
    """What one head's new z changes in the stream [example, pos, d]; other heads' do not count."""
    wiring, own = walk.wiring, walk.runs.base.z[layer]
    new, old = (one.unflatten(-1, (wiring.heads, -1))[..., head, :].float() for one in (z, own))
    projection, every = nn.get(wiring.z[layer][0]), torch.arange(len(own), device=own.device)
    unit = torch.full_like(every, head)
    change = projected(projection, own, every, new - old, unit, wiring.heads)
    if wiring.behind[layer] is not None:
        before = call_inside(projection, own).float()
        norm = nn.get(wiring.behind[layer])
        after, before = (norm(value.to(own)).float() for value in (before + change, before))
        change = after - before
    return change * wiring.scale


def walk_layer(nn: Any, walk: Walk, layer: int, wanted: bool) -> None:
    """One layer of the pass: it is run where paths go through it, and returns the base run's."""
    path, last = walk.wiring.layers[layer], layer == walk.wiring.depth - 1
    if wanted:
        nn.get(path).input = walk.each(walk.runs.base.streams[layer])
        through_heads(nn, walk, layer)
        if walk.wiring.mlp_out:
            through_mlp(nn, walk, layer)
    leaving = walk.each(walk.runs.base.streams[layer + 1])
    if last:
        leaving = (leaving.float() + walk.carried.flatten(0, 1)).to(leaving)
    if not wanted:
        skip(nn, path, leaving, walk.runs.base.layer_arity)
    elif last:
        write(nn, (path, "output", None), leaving)


def through_heads(nn: Any, walk: Walk, layer: int) -> None:
    """Let paths pass through the heads of a layer, and give these back to the base run."""
    wiring, base = walk.wiring, walk.runs.base
    heads = give_ports(nn, walk, layer)
    if not heads:
        return
    z = read(nn, wiring.z[layer]).unflatten(0, (len(walk.chains), -1)).clone()
    write(nn, wiring.z[layer], walk.each(base.z[layer]))
    for chain, head in heads.items():
        walk.carried[chain] = of_head(nn, walk, layer, head, z[chain])


def give_ports(nn: Any, walk: Walk, layer: int) -> dict[int, int]:
    """Let heads on paths have queries, keys or values of their own inputs: which, by path."""
    wiring, stream = walk.wiring, walk.runs.base.streams[layer]
    reads = [
        (name, chain, part[2] or 0)
        for name in "qkv"
        for chain, part in walk.passing(layer, name).items()
    ]
    if not reads:
        return {}
    names, chains, heads = map(list, zip(*reads, strict=True))
    given = (stream.float() + walk.carried[chains]).to(stream)
    given = front_of(nn, wiring, layer, names, given, stream)
    ports = wiring.ports[layer]
    for path in dict.fromkeys(ports[name].module for name in names):
        output = read(nn, (path, "output", None)).clone()
        by_chain = output.unflatten(0, (len(walk.chains), -1))
        for at, name in enumerate(names):
            port = ports[name]
            if port.module == path:
                unit = heads[at] * port.heads // wiring.heads
                columns = port.columns(output.shape[-1])[unit].to(output.device)
                value = made_of(nn, port, [unit], given[at : at + 1])[0]
                by_chain[chains[at]][..., columns] = value.to(output)
        write(nn, (path, "output", None), output)
    return dict(zip(chains, heads, strict=True))


def through_mlp(nn: Any, walk: Walk, layer: int) -> None:
    """Let paths pass through the MLP of a layer, and give it back to the base run."""
    wiring, base, passing = walk.wiring, walk.runs.base, list(walk.passing(layer, "mlp"))
    if not passing:
        return
    path, tokens = wiring.mlp_in[layer], walk.question.base.width - walk.runs.start
    assert path is not None
    where, front = (path, "input", None), wiring.fronts[layer][1]
    stream = walk.each(base.streams[layer]) if wiring.parallel else read(nn, where, tokens)
    given = stream.unflatten(0, (len(walk.chains), -1)).clone()
    given[passing] = (given[passing].float() + walk.carried[passing]).to(given)
    given = given.flatten(0, 1)
    write(nn, where, given if front is None else nn.get(front)(given))
    out = wiring.mlp_out[layer]
    made = read(nn, out, tokens).unflatten(0, (len(walk.chains), -1)).clone()
    write(nn, out, walk.each(base.mlp[layer]))
    walk.carried[passing] = (made[passing].float() - base.mlp[layer].float()) * wiring.scale
