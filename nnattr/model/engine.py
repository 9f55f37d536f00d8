"""Exact patching that computes only what a patch can change.

A patch at layer *l* and position *p* of a causal model changes nothing below layer *l* and nothing
before position *p*; where the two runs agree there is nothing to patch. So a patched *row* (one
cell of one example) enters the model at its layer with the base run's residual stream, runs only
the positions from the first one that its patch changes, and attends to the base run's keys and
values before that. Rows of a layer are batched by where they start, whatever their cell; behind a
long prompt the rows of an example share one sequence (`nnattr.model.abreast`).

`rerun` is this engine; `rerun_full` patches whole forward passes. Every job compares the two on a
few rows, and a model that `rerun` does not serve exactly is served by `rerun_full`.

A row of *t* tokens that enters at layer *l* of *L* costs *t (L - l)* layers, against *S L* for a
full pass of *S* tokens.

Rows are an integer tensor [row, (example, spot, unit, first changed position)]. All of this runs
inside a job: torch and plain values only.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.abreast import lot, shareable
from nnattr.model.gathered import gathered
from nnattr.model.memory import fitting, needed
from nnattr.model.rerun import rerun, rerun_full
from nnattr.model.runs import fork, measure, observe, prefix, refusal, shared

#: A row runs at most this much longer than it needs, so that rows can share a pass.
SLACK = 1.5
#: The engine is compared with full passes on at most so many rows, and this share of its own work.
PROBES, SHARE = 4, 0.02


def sweep(nn: Any, tick: Any, ask: SimpleNamespace) -> dict[str, Any]:
    """Both runs' metric and its change for every example, layer, unit and spot of an ask."""
    width = ask.base["ids"].shape[1]
    refused = out_of_reach(nn, ask)
    if refused:
        return refused
    ask.abreast = False
    if ask.engine == "suffix":
        ask.arity = arity(nn, ask)
    runs = both_runs(nn, ask, shared(ask) if ask.engine == "suffix" else 0)
    refused = runs.refused or refusal(runs.base, ask.n)
    if refused:
        return refused
    plans = [plan(ask, runs, layer) for layer in range(len(ask.layers))]
    if ask.engine == "suffix" and not exact(nn, ask, runs, plans):
        ask.engine = "full"
        runs = both_runs(nn, ask, 0)
    starts = boundaries(torch.cat([rows[:, 3] for rows in plans]), width)
    total, done = sum(effort(ask, i, rows, width) for i, rows in enumerate(plans)), 0
    change = torch.zeros(ask.n, len(ask.layers), ask.units, len(ask.spots))
    for index, rows in enumerate(plans):
        for alike, start in batches(ask, rows, starts, width):
            size = lot(ask, start)
            for some, values in passes(nn, ask, runs, index, alike, start, size):
                change[some[:, 0], index, some[:, 2], some[:, 1]] = values.float().cpu()
                done += effort(ask, index, some, width)
                tick(done, total)
    return {
        "change": change,
        "base": runs.base,
        "source": runs.source,
        "engine": ask.engine,
        "dtype": str(runs.logits.dtype),
    }


def out_of_reach(nn: Any, ask: SimpleNamespace) -> dict[str, Any] | None:
    """What a job returns when a sandbox, which has no weights, gives copies of what it edits.

    An edit in place would reach the norm that reads the residual stream, and not the stream itself.
    """
    in_place = any(side == "stream" for _, side, _ in ask.places)
    if not (in_place and nn.get(ask.embed).weight.is_meta):
        return None
    reason = "a sandboxed deployment cannot edit this site; use resid_pre or resid_post"
    return {"refused": ("backend", reason)}


def arity(nn: Any, ask: SimpleNamespace) -> dict[str, int]:
    """How layers and attention modules return: a tuple of that many, or 0 for a bare tensor."""
    with nn.trace(input_ids=ask.base["ids"][:1, -1:], use_cache=False):
        with torch.no_grad():
            attention = nn.get(ask.attn[0]).output
            layer = nn.get(ask.layer_paths[0]).output
    pair = {"attention": attention, "layer": layer}
    return {name: len(value) if isinstance(value, tuple) else 0 for name, value in pair.items()}


def both_runs(nn: Any, ask: SimpleNamespace, start: int) -> SimpleNamespace:
    """What is known before anything is patched, at the positions from ``start`` on.

    ``streams[l]`` enters layer *l* (the last one leaves the model's last layer), ``attention`` is
    what attention modules return, ``own`` and ``other`` the site in the two runs (``other`` is
    what an ablation puts in its place, if it is one); ``caches`` holds
    the base run's keys and values before a position.
    """
    cache, before = prefix(nn, ask, start)
    every = torch.arange(ask.n)
    names = ("stream", "attention", "site", "end") if ask.engine == "suffix" else ("site",)
    ours, base_logits = observe(nn, ask, ask.base, names, start, fork(cache, every))
    if ask.filled is None:
        theirs, source_logits = observe(nn, ask, ask.source, ("site",), start, fork(cache, every))
    else:
        pairs = zip(ask.filled, ours["site"], strict=True)
        theirs = {"site": [fill.to(own).expand_as(own) for fill, own in pairs]}
        source_logits = base_logits
    if before is not None:
        base_logits = torch.cat([before, base_logits], 1)
        source_logits = torch.cat([before, source_logits], 1)
    clean = (base_logits if ask.base_is_clean else source_logits)[:, -1]
    own = [ours["site"][layer] for layer in ask.layers]
    other = [theirs["site"][layer] for layer in ask.layers]
    if ask.patterns:
        other = gathered(nn, ask, own, start)
    return SimpleNamespace(
        refused=other if isinstance(other, dict) else None,
        start=start,
        caches={start: cache},
        streams=ours.get("stream", []) + ours.get("end", []),
        attention=ours.get("attention", []),
        own=own,
        other=other,
        logits=base_logits,
        clean=clean,
        base=measure(ask, ask.base, base_logits, clean),
        source=measure(ask, ask.source, source_logits, clean),
    )


def plan(ask: SimpleNamespace, runs: SimpleNamespace, index: int) -> Tensor:
    """The rows of a layer: the cells whose patch changes something that can reach the metric."""
    own, other = runs.own[index], runs.other[index]
    differs = (own != other).unflatten(-1, (ask.units, -1)).any(-1).cpu()
    last = ask.layers[index] == len(ask.reads) - 1
    if last and ask.last_only and not ask.spreads:
        differs[:, :-1] = False  # after the last layer positions do not mix
    found = []
    for spot, where in enumerate(ask.spots[:, :, runs.start :]):
        touched = where[..., None] & differs  # [example, pos, unit]
        example, unit = touched.any(1).nonzero(as_tuple=True)
        start = touched.byte().argmax(1)[example, unit] + runs.start
        found.append(torch.stack([example, torch.full_like(unit, spot), unit, start], 1))
    return torch.cat(found)


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


def batches(
    ask: SimpleNamespace, rows: Tensor, starts: list[int], width: int
) -> list[tuple[Tensor, int]]:
    """The rows by where their passes begin."""
    found: list[tuple[Tensor, int]] = []
    upper = width
    for start in starts if ask.engine == "suffix" else [0]:
        here = rows[(rows[:, 3] >= start) & (rows[:, 3] < upper)]
        found += [(here, start)] if len(here) else []
        upper = start
    return found


def effort(ask: SimpleNamespace, index: int, rows: Tensor, width: int) -> int:
    """What these rows cost, in tokens through layers; for the progress bar."""
    return int((width - rows[:, 3]).sum()) * (len(ask.reads) + 1 - ask.layers[index])


def exact(nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, plans: list[Tensor]) -> bool:
    """Whether the engine gives what full passes give, on a few rows of a middle layer.

    Rows go on in sequences of their own, and the last layer is run whole, from here on if that is
    what it takes.
    """
    rows, index = probes(ask, plans)
    if not len(rows):
        return True
    full = torch.cat([some for _, some in passes(nn, ask, runs, index, rows, full=True)])
    scale = torch.maximum(full.abs(), runs.base.abs().max()).clamp(min=1.0)
    near = 1e-4 if torch.finfo(runs.logits.dtype).eps < 1e-6 else 0.1
    start = int(rows[:, 3].min())
    ways = ((True, ask.narrow), (False, ask.narrow), (False, []))
    for abreast, narrow in ways if shareable(ask, runs.caches[runs.start]) else ways[1:]:
        ask.abreast, ask.narrow = abreast, narrow
        size = lot(ask, start, least=2)
        if abreast and size == 1:
            continue
        try:  # each row as often as there are places in a sequence
            found = passes(nn, ask, runs, index, rows.repeat_interleave(size, 0), start, size)
        except Exception:  # whatever the model's own code has against a cache or a skipped layer
            continue
        ours = torch.cat([some for _, some in found]).unflatten(0, (-1, size))
        if ((ours - full[:, None]).abs() <= near * scale[:, None]).all():
            return True
    return False


def probes(ask: SimpleNamespace, plans: list[Tensor]) -> tuple[Tensor, int]:
    """The rows on which the engine is compared, and their layer: few beside what it is to do.

    With padding two at least, of the examples with the most and the least, where there is most to
    go wrong.
    """
    index, width = len(plans) // 2, ask.base["ids"].shape[1]
    total = sum(effort(ask, i, rows, width) for i, rows in enumerate(plans))
    affordable = int(SHARE * total / (width * len(ask.reads)))
    rows = plans[index]
    padding = (~ask.base["mask"]).sum(1)[rows[:, 0]]
    count = min(len(rows), max(1 + bool(padding.any()), min(PROBES, affordable)))
    spread = torch.linspace(0, len(rows) - 1, count).long() if count else torch.arange(0)
    return rows[padding.argsort(descending=True, stable=True)[spread]], index


def passes(
    nn: Any,
    ask: SimpleNamespace,
    runs: SimpleNamespace,
    index: int,
    rows: Tensor,
    start: int = 0,
    size: int = 1,
    full: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Parts of ``rows``, as many at a time as fit, and the change of the metric in each of them."""
    work = partial(changes, nn, ask, runs, index, start=start, size=size, full=full)
    tokens = ask.base["ids"].shape[1] - start
    return fitting(ask, rows, needed(ask, start, runs.start, size), tokens, work, size)


def changes(
    nn: Any,
    ask: SimpleNamespace,
    runs: SimpleNamespace,
    index: int,
    rows: Tensor,
    start: int,
    size: int,
    full: bool,
) -> Tensor:
    """The change of the metric in each row."""
    example = rows[:, 0]
    if full or ask.engine == "full":
        logits = rerun_full(nn, ask, runs, index, rows)
    else:
        logits = rerun(nn, ask, runs, index, rows, start, size)
        if not ask.last_only:
            known = runs.logits[example.to(runs.logits.device), :start]
            logits = torch.cat([known, logits], 1)
    value = measure(ask, ask.base, logits, runs.clean, example)
    return value - runs.base[example.to(value.device)]
