"""Exact patching that computes only what a patch can change.

A patch at layer *l* and position *p* of a causal model changes nothing below layer *l* and nothing
before position *p*; where the two runs agree there is nothing to patch. So a patched *row* (one
cell of one example) enters the model at its layer with the base run's residual stream, runs only
the positions from the first one that its patch changes, and attends to the base run's keys and
values before that. Rows of a layer are batched by where they start, whatever their cell; behind a
long prompt the rows of an example share one sequence (`nnattr.model.abreast`).

`rerun` is this engine; `rerun_full` runs every layer with the patch written at its site. Every job
holds the base run that goes on from its keys and values against its whole pass, and from there on a
few rows of `rerun` against `rerun_full`. A model that fails either is served by full passes.

A row of *t* tokens that enters at layer *l* of *L* costs *t (L - l)* layers, against *S L* for a
full pass of *S* tokens.

Rows are an integer tensor [row, (example, spot, unit, first changed position)]. All of this runs
inside a job: torch and plain values only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.abreast import lot, shareable
from nnattr.model.gathered import gathered
from nnattr.model.memory import fitting, needed, ran_out
from nnattr.model.rerun import known, rerun, rerun_full
from nnattr.model.runs import closeness, fork, measure, observe, refusal, same, shared

#: A row runs at most this much longer than it needs, so that rows can share a pass.
SLACK = 1.5
#: The engine is compared on at most so many rows, and this share of its own work.
PROBES, SHARE = 2, 0.02
#: What comparing a row costs, in passes of its tokens through all layers.
COMPARED = 3
#: Characters that are kept of what a model says against the engine.
LONGEST = 300


def sweep(nn: Any, tick: Any, ask: SimpleNamespace) -> dict[str, Any]:
    """Both runs' metric and its change for every example, layer, unit and spot of an ask."""
    width = ask.base["ids"].shape[1]
    refused = out_of_reach(nn, ask)
    if refused:
        return refused
    found = prepared(nn, ask)
    if isinstance(found, dict):
        return found
    runs, plans = found
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
        "fell_back": ask.fell_back,
        "dtype": str(runs.logits.dtype),
    }


def prepared(nn: Any, ask: SimpleNamespace) -> Any:
    """`ready` by the engine that serves this model; ``ask.fell_back`` says why not by its own."""
    ask.abreast, ask.fell_back = False, ""
    if ask.engine == "suffix":
        try:
            found = ready(nn, ask)
            if isinstance(found, dict) or exact(nn, ask, *found):
                return found
            ask.fell_back = "full passes give other numbers"
        except Exception as error:  # whatever the model's own code has against a cache
            if ran_out(error):
                raise
            ask.fell_back = f"{type(error).__name__}: {error}"[:LONGEST]
        found, ask.engine = None, "full"  # nothing of it is kept
    return ready(nn, ask)


def ready(nn: Any, ask: SimpleNamespace) -> Any:
    """Both runs and each layer's rows, or what a job returns that cannot be done."""
    runs = both_runs(nn, ask)
    refused = runs.refused or refusal(runs.base, ask.n)
    return refused or (runs, [plan(ask, runs, layer) for layer in range(len(ask.layers))])


def out_of_reach(nn: Any, ask: SimpleNamespace) -> dict[str, Any] | None:
    """What a job returns when a sandbox, which has no weights, gives copies of what it edits.

    An edit in place would reach the norm that reads the residual stream, and not the stream itself.
    """
    in_place = any(side == "stream" for _, side, _ in ask.places)
    if not (in_place and nn.get(ask.embed).weight.is_meta):
        return None
    reason = "a sandboxed deployment cannot edit this site; use resid_pre or resid_post"
    return {"refused": ("backend", reason)}


def both_runs(nn: Any, ask: SimpleNamespace) -> SimpleNamespace:
    """What is known before anything is patched, at the positions from ``start`` on.

    ``streams[l]`` enters layer *l* (the last one leaves the model's last layer), ``attention`` is
    what attention modules return, ``own`` and ``other`` the site in the two runs (``other`` is
    what an ablation puts in its place, if it is one); ``cache`` holds the base run's keys and
    values, ``caches`` those before a position. Both runs are made alike, from ``start`` on, so that
    they are the same to the bit where nothing differs; ``whole`` are the logits of the base run as
    one pass.
    """
    if ask.engine == "full":
        start, steps, wanted, first = 0, (), ("site",), ("site",)
    else:
        start, steps = shared(ask), ("gelu",)
        wanted = ("stream", "attention", "arity", "site", "end", *steps)
        first = steps if start else wanted
        if start or not ask.spots[..., 0].all():  # some rows begin later
            first = (*first, "cache")
    ours, whole = observe(nn, ask, ask.base, first)
    runs = SimpleNamespace(start=start, cache=ours.get("cache"), caches={})
    runs.whole = runs.logits = whole
    if start:
        ours, runs.logits = resumed(nn, ask, runs, ask.base, wanted)
    if ask.filled is None:
        theirs, source_logits = resumed(nn, ask, runs, ask.source, ("site", *steps))
    else:
        pairs = zip(ask.filled, ours["site"], strict=True)
        theirs = {"site": [fill.to(own).expand_as(own) for fill, own in pairs]}
        source_logits = runs.logits
    ask.arity = dict(zip(("attention", "layer"), ours.get("arity", [0, 0]), strict=True))
    runs.streams = ours.get("stream", []) + ours.get("end", [])
    runs.attention = ours.get("attention", [])
    runs.own = [ours["site"][layer] for layer in ask.layers]
    runs.other = [theirs["site"][layer] for layer in ask.layers]
    if ask.patterns:
        runs.other = gathered(nn, ask, runs.own, start)
    runs.refused = runs.other if isinstance(runs.other, dict) else None
    runs.clean = (runs.logits if ask.base_is_clean else source_logits)[:, -1]
    runs.base = measure(ask, ask.base, runs.logits, runs.clean)
    runs.source = measure(ask, ask.source, source_logits, runs.clean)
    return runs


def alike(ask: SimpleNamespace, runs: SimpleNamespace, logits: Tensor) -> bool:
    """Whether another way to the base run gives its last logits, and its metric."""
    value = measure(ask, ask.base, logits, runs.clean)
    near = closeness(runs.logits) * runs.base.abs().max().clamp(min=1.0)
    return same(logits[:, -1], runs.logits[:, -1]) and bool((value - runs.base).abs().max() <= near)


def resumed(
    nn: Any,
    ask: SimpleNamespace,
    runs: SimpleNamespace,
    prompts: dict[str, Tensor],
    names: tuple[str, ...],
    start: int | None = None,
) -> tuple[dict[str, Any], Tensor]:
    """A run of all examples that goes on from the base run's keys and values: see `observe`.

    It goes on from ``start``, by default where runs begin; the logits before are the base run's.
    """
    first: int = runs.start if start is None else start
    cache = fork(known(nn, ask, runs, first), torch.arange(ask.n))
    found, logits = observe(nn, ask, prompts, names, first, cache)
    return found, torch.cat([runs.whole[:, : 0 if ask.last_only else first], logits], 1)


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
    """Whether the engine gives what full passes give, on a few rows of the first layer.

    In two steps: the base run goes on from its keys and values as it did in its whole pass, and
    there the engine gives what all layers give. Rows go on in sequences of their own, and the last
    layer is run whole, from here on if that is what it takes; no sequence will be longer than here.
    """
    rows, index = probes(ask, plans)
    if not len(rows):
        return True
    if not alike(ask, runs, runs.whole):
        return False
    last = max(int(some[:, 3].max()) for some in plans if len(some))
    if last and not runs.start:  # both runs were whole: nothing has gone on from them yet
        later = resumed(nn, ask, runs, ask.base, ("gelu",), last)[1]
        if not alike(ask, runs, later):
            return False
    runs.whole = None  # not needed any more
    start = int(rows[:, 3].min())
    full = torch.cat([some for _, some in passes(nn, ask, runs, index, rows, start, full=True)])
    scale = torch.maximum(full.abs(), runs.base.abs().max()).clamp(min=1.0)
    near = closeness(runs.logits)
    ways = ((True, ask.narrow), (False, ask.narrow), (False, []))
    for abreast, narrow in ways if shareable(ask, known(nn, ask, runs, start)) else ways[1:]:
        ask.abreast, ask.narrow, ask.keys = abreast, narrow, None
        if abreast and lot(ask, last) == 1:  # no pass would be
            continue
        size = lot(ask, start, least=2)
        often = rows.repeat_interleave(size, 0)  # as many as there are places in a sequence
        ask.keys = start + size * (ask.base["ids"].shape[1] - start)
        try:
            found = list(passes(nn, ask, runs, index, often, start, size))
        except Exception as error:  # whatever the model's own code has against a skipped layer
            if ran_out(error):
                raise
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
    width = ask.base["ids"].shape[1]
    index = next((i for i, rows in enumerate(plans) if len(rows)), 0)
    rows = plans[index]
    padding = (~ask.base["mask"]).sum(1)[rows[:, 0]]
    total = sum(effort(ask, i, rows, width) for i, rows in enumerate(plans))
    tokens = width - int(rows[:, 3].min()) if len(rows) else width
    affordable = int(SHARE * total / (COMPARED * tokens * len(ask.reads)))
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
) -> Iterator[tuple[Tensor, Tensor]]:
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
        logits = rerun_full(nn, ask, runs, index, rows, start)
    else:
        logits = rerun(nn, ask, runs, index, rows, start, size)
    if not ask.last_only:
        before = runs.logits[example.to(runs.logits.device), :start]
        logits = torch.cat([before, logits], 1)
    value = measure(ask, ask.base, logits, runs.clean, example)
    return value - runs.base[example.to(value.device)]
