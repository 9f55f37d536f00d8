"""Edges between parts, done the long way: whole forward passes and plain hooks, one prompt alone.

A *sender* is ``"input"``, a head ``"L3H2"`` or an MLP ``"M3"``; a *receiver* what a head reads,
``"L5H1.q"``, ``.k``, ``.v`` or ``.qk`` (both at once, its pattern), what a key/value head gives to
all of its heads, ``"L5KV0.k"``, an MLP, or ``"logits"``. Keys and values of a single head may be
changed also where heads share them.

What a sender changes is found by running the model with that sender alone taken from the other run,
and looking at what its sublayer then adds to the residual stream: this is right with norms behind
the sublayer as well. What a receiver makes of another input is found by running the model with all
that its layer reads changed, and taking only this receiver from it. Nothing here knows a norm, a
rotary embedding or a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.oracles.maps import map_of
from tests.oracles.parts import Edge, all_edges, head_count, heads_of, layers_of, order, parsed
from tests.oracles.patching import Pair, logits_of, passed_through
from tests.oracles.reads import Read, heads_read

SITES = ("resid_pre", "z", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Change:
    """What is done at a site of a layer; of ``q``, ``k`` and ``v`` to all heads at once."""

    site: str
    layer: int
    change: Callable[[Tensor], Tensor]


@dataclass
class Run:
    """What a run's parts were: by layer, [pos, width], and for heads' reads [head, pos, d_head]."""

    logits: Tensor = field(default_factory=lambda: torch.zeros(0))
    sites: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __getitem__(self, place: tuple[str, int]) -> Tensor:
        return self.sites[place]


@torch.no_grad()
def run(module: Any, ids: Tensor, changes: Iterable[Change] = ()) -> Run:
    """One forward pass with these changes made, one after the other; values are behind them."""
    found, changes = Run(), list(changes)

    def read(layer: int, own: Read) -> Read:
        for port in own:
            for one in changes:
                if (one.site, one.layer) == (port, layer):
                    own[port] = one.change(own[port])
            found.sites[port, layer] = own[port].clone()
        return own

    with ExitStack() as hooks:
        for one in changes:
            if one.site not in "qkv":
                hooks.enter_context(passed_through(module, one.site, one.layer, one.change))
        for layer in range(layers_of(module)):
            for site in SITES:
                hooks.enter_context(passed_through(module, site, layer, _keep(found, site, layer)))
        hooks.enter_context(heads_read(module, read))
        found.logits = logits_of(module, ids)
    return found


def _keep(found: Run, site: str, layer: int) -> Callable[[Tensor], Tensor]:
    def keep(own: Tensor) -> Tensor:
        found.sites[site, layer] = own.clone()
        return own

    return keep


# What senders change.


def change_of(
    module: Any,
    pair: Pair,
    senders: Sequence[str],
    positions: Sequence[int] | None = None,
    live: Sequence[Change] = (),
) -> Tensor:
    """By how much what these senders write differs from the other run's [pos, width], summed.

    Heads of one layer are taken together, so that a norm behind them sees them all.

    Args:
        positions: where they change; None for everywhere.
        live: what is already changed in the run that they are compared with.
    """
    ours, theirs = run(module, pair.base, live), run(module, pair.source)
    scale = map_of(module).scale
    total = torch.zeros_like(ours["resid_pre", 0])
    heads: dict[int, list[int]] = {}
    for sender in senders:
        kind, layer, number, _ = parsed(sender)
        if kind == "input":
            total = total + theirs["resid_pre", 0] - ours["resid_pre", 0]
        elif kind == "M":
            total = total + scale * (theirs["mlp_out", layer] - ours["mlp_out", layer])
        else:
            heads.setdefault(layer, []).append(number)
    for layer, numbers in heads.items():
        own = ours["z", layer].unflatten(-1, (head_count(module), -1)).clone()
        own[:, numbers] = theirs["z", layer].unflatten(-1, (head_count(module), -1))[:, numbers]
        moved = run(module, pair.base, [*live, _become("z", layer, own.flatten(1))])
        total = total + scale * (moved["attn_out", layer] - ours["attn_out", layer])
    if positions is not None:
        kept = torch.zeros(len(total), 1)
        kept[list(positions)] = 1
        total = total * kept
    return total


def _become(site: str, layer: int, value: Tensor) -> Change:
    return Change(site, layer, lambda own: value)


def _add(site: str, layer: int, value: Tensor) -> Change:
    return Change(site, layer, lambda own: own + value)


# What receivers make of it.


def given(
    module: Any, pair: Pair, receiver: str, extra: Tensor, live: Sequence[Change] = ()
) -> list[Change]:
    """The changes by which this receiver alone reads ``extra`` [pos, width] more than it does."""
    kind, layer, _, ports = parsed(receiver)
    if kind == "logits":
        return [_add("resid_post", layers_of(module) - 1, extra)]
    where = "resid_mid" if kind == "M" and not map_of(module).parallel else "resid_pre"
    seen = run(module, pair.base, [*live, _add(where, layer, extra)])
    if kind == "M":
        return [_become("mlp_out", layer, seen["mlp_out", layer])]
    return [_take(port, layer, heads_of(module, receiver), seen[port, layer]) for port in ports]


def _take(port: str, layer: int, heads: Sequence[int], value: Tensor) -> Change:
    def change(own: Tensor) -> Tensor:
        new = own.clone()
        new[list(heads)] = value[list(heads)]
        return new

    return Change(port, layer, change)


# Effects: the metric with a patch, less the metric of the base run.


def effect(module: Any, pair: Pair, changes: Sequence[Change]) -> float:
    """By how much these changes of the base run move the metric."""
    before, after = (run(module, pair.base, some).logits for some in ((), changes))
    return float(pair.metric(after, pair.base[0]) - pair.metric(before, pair.base[0]))


def one_edge(
    module: Any, pair: Pair, sender: str, receiver: str, positions: Sequence[int] | None = None
) -> float:
    """One edge, with all that lies between frozen: the receiver alone reads the sender's change."""
    extra = change_of(module, pair, [sender], positions)
    return effect(module, pair, given(module, pair, receiver, extra))


def every_edge(
    module: Any, pair: Pair, edges: Iterable[Edge], positions: Sequence[int] | None = None
) -> dict[Edge, float]:
    """`one_edge` of each."""
    extras: dict[str, Tensor] = {}
    found = {}
    for sender, receiver in edges:
        if sender not in extras:
            extras[sender] = change_of(module, pair, [sender], positions)
        changes = given(module, pair, receiver, extras[sender])
        found[sender, receiver] = effect(module, pair, changes)
    return found


def together(
    module: Any, pair: Pair, edges: Iterable[Edge], positions: Sequence[int] | None = None
) -> float:
    """A set of edges: every receiver reads its live input and its senders' changes from live."""
    return effect(module, pair, joint_changes(module, pair, edges, positions))


def joint_changes(
    module: Any, pair: Pair, edges: Iterable[Edge], positions: Sequence[int] | None = None
) -> list[Change]:
    """What `together` changes: receivers in forward order, each after those before it."""
    senders: dict[str, list[str]] = {}
    for sender, receiver in edges:
        senders.setdefault(receiver, []).append(sender)
    live: list[Change] = []
    for receiver in sorted(senders, key=order):
        extra = change_of(module, pair, senders[receiver], positions, live)
        live += given(module, pair, receiver, extra, live)
    return live


def circuit(module: Any, pair: Pair, kept: Iterable[Edge], ungrouped: bool = False) -> float:
    """A circuit in the base run: every edge that is not kept takes the other run."""
    kept = set(kept)
    return together(module, pair, [one for one in all_edges(module, ungrouped) if one not in kept])


def chain(
    module: Any, pair: Pair, parts: Sequence[str], positions: Sequence[int] | None = None
) -> float:
    """One path, sender first and ``"logits"`` last: everything off it keeps the base run."""
    ours, scale = run(module, pair.base), map_of(module).scale
    extra = change_of(module, pair, parts[:1], positions)
    for receiver in parts[1:-1]:
        kind, layer, *_ = parsed(receiver)
        site = "mlp_out" if kind == "M" else "attn_out"
        seen = run(module, pair.base, given(module, pair, receiver, extra))
        extra = scale * (seen[site, layer] - ours[site, layer])
    return effect(module, pair, given(module, pair, parts[-1], extra))


def through_mlps(
    module: Any, pair: Pair, sender: str, receiver: str, positions: Sequence[int] | None = None
) -> float:
    """The IOI paper's path patch: heads between keep the base run, MLPs and norms do not."""
    ours = run(module, pair.base)
    frozen = [_become("z", at, ours["z", at]) for at in range(layers_of(module))]
    seen = run(module, pair.base, [*frozen, _sent(module, pair, sender, positions)])
    kind, layer, _, ports = parsed(receiver)
    if kind == "logits":
        after, before = (pair.metric(one.logits, pair.base[0]) for one in (seen, ours))
        return float(after - before)
    if kind == "M":
        return effect(module, pair, [_become("mlp_out", layer, seen["mlp_out", layer])])
    heads = heads_of(module, receiver)
    return effect(module, pair, [_take(port, layer, heads, seen[port, layer]) for port in ports])


def _sent(module: Any, pair: Pair, sender: str, positions: Sequence[int] | None) -> Change:
    """The sender's own output taken from the other run."""
    kind, layer, number, _ = parsed(sender)
    site = {"input": "resid_pre", "M": "mlp_out", "H": "z"}[kind]
    theirs = run(module, pair.source)[site, layer]
    rows = list(range(len(theirs))) if positions is None else list(positions)
    columns = torch.arange(theirs.shape[-1])
    if kind == "H":
        columns = columns.view(head_count(module), -1)[number]

    def change(own: Tensor) -> Tensor:
        new = own.clone()
        for row in rows:
            new[row, columns] = theirs[row, columns]
        return new

    return Change(site, layer, change)
