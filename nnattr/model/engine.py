"""Exact patching that computes only what a patch can change.

A patch at layer *l* and position *p* of a causal model changes nothing below layer *l* and nothing
before position *p*; where the two runs agree there is nothing to patch. So a patched *row* (one
cell of one example) enters the model at its layer with the base run's residual stream, runs only
the positions from the first one that its patch changes, and attends to the base run's keys and
values before that. Rows are batched by where they start, whatever their cell, and join a pass each
at its layer; behind a long prompt those of an example share one sequence (`nnattr.model.abreast`).

`rerun` is this engine; `rerun_full` runs every layer with the patch written at its site. Every job
holds the base run that goes on from its keys and values against its whole pass, and from there on a
few rows of `rerun` against `rerun_full`. A model that fails either is served by full passes.

A row of *t* tokens that enters at layer *l* of *L* costs *t (L - l)* layers, against *S L* for a
full pass of *S* tokens.

Rows are an integer tensor [row, (example, spot, unit, first changed position, asked layer)], in the
order of their layers. All of this runs inside a job: torch and plain values only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.abreast import lot, shareable
from nnattr.model.caches import fork, known
from nnattr.model.gathered import gathered
from nnattr.model.memory import fitting, needed, ran_out
from nnattr.model.rerun import rerun, rerun_full
from nnattr.model.runs import closeness, measure, observe, refusal, same, shared

#: A row runs at most this much longer than it needs, so that rows can share a pass. Less than 2, so
#: that rows of the last token alone have passes of their own.
SLACK = 1.5
#: Characters that are kept of what a model says against the engine.
LONGEST = 300


def sweep(nn: Any, tick: Any, ask: SimpleNamespace) -> dict[str, Any]:
    """Both runs' metric and its change for every example, layer, unit and spot of an ask."""
    refused = out_of_reach(nn, ask)
    if refused:
        return refused
    found = prepared(nn, ask)
    if isinstance(found, dict):
        return found
    runs, rows = found
    total, done = effort(ask, rows), 0
    change = torch.zeros(ask.n, len(ask.layers), ask.units, len(ask.spots))
    for alike, start in batches(ask, rows):
        for some, values in passes(nn, ask, runs, alike, start, lot(ask, start)):
            change[some[:, 0], some[:, 4], some[:, 2], some[:, 1]] = values.float().cpu()
            done += effort(ask, some)
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
    ask.together, ask.abreast, ask.fell_back = False, False, ""
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
    """Both runs and the rows, or what a job returns that cannot be done."""
    runs = both_runs(nn, ask)
    refused = runs.refused or refusal(runs.base, ask.n)
    return refused or (runs, torch.cat([plan(ask, runs, i) for i in range(len(ask.layers))]))


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
    cache = fork(known(nn, ask, runs, first), [torch.arange(ask.n)] * len(ask.layer_paths))
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
        place, layer = (torch.full_like(unit, value) for value in (spot, index))
        found.append(torch.stack([example, place, unit, start, layer], 1))
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


def batches(ask: SimpleNamespace, rows: Tensor) -> list[tuple[Tensor, int]]:
    """The rows by where their passes begin, and by layer unless layers go together."""
    if ask.engine == "full":
        return [(rows, 0)] if len(rows) else []
    width = upper = ask.base["ids"].shape[1]
    found: list[tuple[Tensor, int]] = []
    for start in boundaries(rows[:, 3], width):
        here = rows[(rows[:, 3] >= start) & (rows[:, 3] < upper)]
        found += [(some, start) for some in ([here] if ask.together else by_layer(here))]
        upper = start
    return found


def by_layer(rows: Tensor) -> list[Tensor]:
    """The rows of each layer."""
    counts = torch.unique_consecutive(rows[:, 4], return_counts=True)[1]
    return list(rows.split(counts.tolist()))


def effort(ask: SimpleNamespace, rows: Tensor) -> int:
    """What these rows cost, in tokens through layers; for the progress bar."""
    tokens = ask.base["ids"].shape[1] - rows[:, 3]
    return int((tokens * (len(ask.reads) + 1 - torch.tensor(ask.layers)[rows[:, 4]])).sum())


def exact(nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, rows: Tensor) -> bool:
    """Whether the engine gives what full passes give, on a few of the rows.

    In two steps: the base run goes on from its keys and values as it did in its whole pass, and
    there the engine gives what all layers give. Each layer has passes of its own, rows go on in
    sequences of their own, and the last layer is run whole, from here on if that is what it takes;
    no sequence will be longer than here.
    """
    if not len(rows):
        return True
    if not alike(ask, runs, runs.whole):
        return False
    last = int(rows[:, 3].max())
    if last and not runs.start:  # both runs were whole: nothing has gone on from them yet
        later = resumed(nn, ask, runs, ask.base, ("gelu",), last)[1]
        if not alike(ask, runs, later):
            return False
    runs.whole = None  # not needed any more
    few = probes(ask, rows)
    start = int(few[:, 3].min())
    full = torch.cat([values for _, values in passes(nn, ask, runs, few, start, full=True)])
    scale = torch.maximum(full.abs(), runs.base.abs().max()).clamp(min=1.0)
    near = closeness(runs.logits)
    # in a sandbox a layer's arguments, cache and all, would travel at every join
    joins = few[0, 4] < few[-1, 4] and not nn.get(ask.embed).weight.is_meta
    together = [True, False] if joins else [False]
    abreast = [True, False] if shareable(ask, known(nn, ask, runs, start)) else [False]
    ways = [(*way, ask.narrow) for way in product(together, abreast)]
    for ask.together, ask.abreast, ask.narrow in (*ways, (False, False, [])):
        ask.keys, ask.whole, ask.comparing = None, set(), True
        if ask.abreast and lot(ask, last) == 1:  # no pass would be
            continue
        size = lot(ask, start, least=2)
        often = few.repeat_interleave(size, 0)  # as many as there are places in a sequence
        ask.keys = start + size * (ask.base["ids"].shape[1] - start)
        try:
            found = [
                values
                for some in ([often] if ask.together else by_layer(often))
                for _, values in passes(nn, ask, runs, some, start, size)
            ]
            if ask.together and len(found) > 1:  # they did not fit one pass: nothing has joined
                continue
        except Exception as error:  # whatever the model's own code has against a skipped layer
            if ran_out(error):
                raise
            continue
        ours = torch.cat(found).unflatten(0, (-1, size))
        if ((ours - full[:, None]).abs() <= near * scale[:, None]).all():
            ask.comparing = False
            return True
    return False


def probes(ask: SimpleNamespace, rows: Tensor) -> Tensor:
    """The two rows on which the engine is compared: one of the first layer, one of a later.

    Of examples with the most padding and with the least, where there is most to go wrong. Of the
    later layers it is the middle one whose rows go through a layer's attention.
    """
    through = ask.entry in ("before", "inside")
    early, *above = by_layer(rows)
    above = [some for some in above if ask.layers[some[0, 4]] + 1 - through < len(ask.reads)]
    late = above[len(above) // 2] if above else early
    padding = (~ask.base["mask"]).sum(1)
    most = padding[early[:, 0]].argsort(stable=True, descending=True)[0]
    least = padding[late[:, 0]].argsort(stable=True)
    return torch.stack([early[most], late[least[-1 if late is early else 0]]])


def passes(
    nn: Any,
    ask: SimpleNamespace,
    runs: SimpleNamespace,
    rows: Tensor,
    start: int = 0,
    size: int = 1,
    full: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of ``rows``, as many at a time as fit, and the change of the metric in each of them."""
    work = partial(changes, nn, ask, runs, start=start, size=size, full=full)
    tokens = ask.base["ids"].shape[1] - start
    return fitting(ask, rows, needed(ask, start, runs.start, size), tokens, work, size)


def changes(
    nn: Any,
    ask: SimpleNamespace,
    runs: SimpleNamespace,
    rows: Tensor,
    start: int,
    size: int,
    full: bool,
) -> Tensor:
    """The change of the metric in each row."""
    example = rows[:, 0]
    if full or ask.engine == "full":
        logits = rerun_full(nn, ask, runs, rows, start)
    else:
        logits = rerun(nn, ask, runs, rows, start, size)
    if not ask.last_only:
        before = runs.logits[example.to(runs.logits.device), :start]
        logits = torch.cat([before, logits], 1)
    value = measure(ask, ask.base, logits, runs.clean, example)
    return value - runs.base[example.to(value.device)]
