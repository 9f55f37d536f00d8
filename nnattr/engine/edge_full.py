"""Edges by whole passes, literally.

A receiver is given its own input in one pass, and what it then makes is put into another, in which
all else is the base run.

What the engine's rows are held against, and what serves a model that they do not.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.cache import cache_of_rows, inputs_from
from nnattr.engine.ends import KINDS, PORTS
from nnattr.engine.receivers import Graphed
from nnattr.engine.rows import Rows
from nnattr.engine.shortcuts import read_logits
from nnattr.runs.places import read, write

#: What is done with an activation where a pass makes it; None where it is only read.
Change = Callable[[Tensor], Tensor] | None
#: A place in a pass, and what is done there.
Step = tuple[tuple[Any, ...], Change]


def full_logits(known: Graphed, rows: Rows, start: int) -> Tensor:
    """The logits of each row [row, pos, token] from ``start`` on, by all layers."""
    ends = known.ends
    port = ends.port[ends.receiver(rows.unit)]
    kind = port * known.question.layout.depth + rows.layer
    found: Any = None
    for one in kind.unique():
        there = (kind == one).nonzero()[:, 0]
        logits = by_port(known, rows.take(there), start, PORTS[int(port[there[0]])])
        found = logits.new_empty(len(rows), *logits.shape[1:]) if found is None else found
        found[there.to(logits.device)] = logits
    return found


def by_port(known: Graphed, rows: Rows, start: int, port: str) -> Tensor:
    """The same for rows of one layer, whose receivers read by one port."""
    parts, layout, layer = known.parts, known.question.layout, int(rows.layer[0])
    first = reaching(known, rows, start, port)
    if port == "logits":
        return passed(known, rows, start, first)[0]
    if port == "mlp":
        mlp = parts.mlp[layer]
        _, (*_, made) = passed(known, rows, start, [*first, (mlp, None)])
        return passed(known, rows, start, [(mlp, partial(put, made))])[0]
    names = [name for name in "qkv" if name in port]
    places = [parts.ports[name][layer] for name in names]
    _, made = passed(known, rows, start, [*first, *((where, None) for where in places)])
    made = made[len(first) :]
    own = [
        mask(known, rows, value.shape[-1], name) for name, value in zip(names, made, strict=True)
    ]
    steps = [
        (where, partial(put_part, its, value))
        for where, its, value in zip(places, own, made, strict=True)
    ]
    if port == "q" or not shares(known, rows):
        return passed(known, rows, start, steps)[0]
    z = layout.places[layer]  # of heads that share what was changed, one alone goes on
    _, (*_, apart) = passed(known, rows, start, [*steps, (z, None)])
    its = mask(known, rows, apart.shape[-1], "z")
    return passed(known, rows, start, [(z, partial(put_part, its, apart))])[0]


def reaching(known: Graphed, rows: Rows, start: int, port: str) -> list[Step]:
    """What is done in a pass so that receivers of one layer read what senders change."""
    parts, layout, layer = known.parts, known.question.layout, int(rows.layer[0])
    if known.by_mlps:
        return sent(known, rows, start, port)
    if port == "logits":
        return [((layout.layers[-1], "output", None), partial(changed, known, rows, start, 1.0))]
    if port == "mlp" and not parts.parallel:
        return [(parts.added[layer], partial(changed, known, rows, start, 1 / layout.scale))]
    return [((layout.layers[layer], "input", None), partial(changed, known, rows, start, 1.0))]


def sent(known: Graphed, rows: Rows, start: int, port: str) -> list[Step]:
    """The same where only heads are frozen: senders are changed, and every head is put back."""
    parts, layout = known.parts, known.question.layout
    last = layout.depth if port == "logits" else int(rows.layer[0])
    found: list[Step] = [
        ((layout.layers[0], "input", None), partial(become, known, rows, start, 0, "input"))
    ]
    for layer in range(last + 1 if port == "mlp" and not parts.parallel else last):
        found.append((layout.places[layer], partial(become, known, rows, start, layer, "head")))
        if parts.mlp and layer < last:
            found.append((parts.mlp[layer], partial(become, known, rows, start, layer, "mlp")))
    return found


def become(known: Graphed, rows: Rows, start: int, layer: int, kind: str, live: Tensor) -> Tensor:
    """What senders of a kind write in a layer; other heads of it what they did in the base run."""
    base, ends, writes = known.base, known.ends, known.writes
    sender, here = ends.sender(rows.unit), slice(start - base.start, None)
    own = (ends.kind[sender] == KINDS.index(kind)) & (ends.layer[sender] == layer)
    covered = known.question.spots[rows.spot, rows.example, start:] & own[:, None]
    covered, example = covered[..., None].to(live.device), rows.example.to(live.device)
    if kind == "head":
        heads = torch.arange(known.question.layout.sizes.heads) == ends.unit[sender][:, None]
        columns = heads.repeat_interleave(live.shape[-1] // heads.shape[1], 1)[:, None]
        other, kept = (one[layer][example, here] for one in (base.other, base.own))
        return torch.where(covered & columns.to(live.device), other, kept)
    change = (writes.input if kind == "input" else writes.mlp[layer])[example, here]
    return live.float() + (change * covered).reshape(live.shape)


def passed(
    known: Graphed, rows: Rows, start: int, steps: Sequence[Step]
) -> tuple[Tensor, list[Tensor]]:
    """One pass of rows: its logits, and what stood at each of these places, in forward order."""
    nn, question = known.nn, known.question
    layout, tokens = question.layout, question.base.width - start
    every, seen = [rows.example] * layout.depth, []
    cache = cache_of_rows(nn, question, known.base.prefixes, start, every)
    with nn.trace(**inputs_from(layout, question.base.take(rows.example), start, cache)):
        with torch.no_grad():
            for where, change in steps:
                live = read(nn, where, tokens)
                seen.append(live.clone())
                if change is not None:
                    write(nn, where, change(live).to(live))
            logits = read_logits(nn, question)
    return logits, seen


def changed(known: Graphed, rows: Rows, start: int, factor: float, live: Tensor) -> Tensor:
    """An activation with the senders' change, times a factor."""
    sender = known.ends.sender(rows.unit)
    change = known.change(rows, sender, start, 0).to(live.device)
    return live.float() + (factor * change).reshape(live.shape)


def put(value: Tensor, live: Tensor) -> Tensor:
    """Another activation in the place of one."""
    return value.reshape(live.shape)


def put_part(mask: Tensor, value: Tensor, live: Tensor) -> Tensor:
    """A part of another activation in the place of the same part."""
    return torch.where(mask.to(live.device), value, live)


def mask(known: Graphed, rows: Rows, width: int, name: str) -> Tensor:
    """Which of the columns of q, k, v or z belong to each row's receiver [row, 1, column], bool."""
    layout, receiver = known.question.layout, known.ends.receiver(rows.unit)
    units = layout.kv_heads if name in "kv" else layout.sizes.heads
    part = known.ends.part[receiver] * units // known.ends.parts[receiver]
    own = torch.arange(units) == part[:, None]
    return own.repeat_interleave(width // units, -1)[:, None]


def shares(known: Graphed, rows: Rows) -> bool:
    """Whether a receiver is one of several heads that share a key and a value."""
    layout, receiver = known.question.layout, known.ends.receiver(rows.unit)
    counted_in = int(known.ends.parts[receiver[0]])
    return layout.kv_heads != layout.sizes.heads and counted_in == layout.sizes.heads
