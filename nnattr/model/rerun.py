"""One pass of patched rows: of a whole model, or of what is above and after the patch.

`rerun_full` writes the patch at its site and runs everything. `rerun` enters the model where the
patch does: layers below are skipped, positions before come from the base run's cache, and of the
last layer only what the metric reads is computed to its end. Inside a job: torch and plain values.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.abreast import apart, end_to_end, groups, inputs_abreast
from nnattr.model.projection import last_queries, projected
from nnattr.model.runs import fork, inputs, lend, logits_of, one_step, prefix, shortened
from nnattr.model.sites import read, write


def patch(
    ask: SimpleNamespace, runs: SimpleNamespace, index: int, rows: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """The site in each row from ``first`` on: as it was, and with the row's cell patched."""
    own, other = (value[:, first - runs.start :] for value in (runs.own[index], runs.other[index]))
    example, unit = (rows[:, i].to(own.device) for i in (0, 2))
    units = torch.arange(ask.units, device=own.device) == unit[:, None]
    mask = covered(ask, rows, first).to(own.device)[..., None] & units[:, None]
    before = own[example]
    mask = mask.repeat_interleave(own.shape[-1] // ask.units, -1)
    return before, torch.where(mask, other[example], before)


def moved(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, index: int, rows: Tensor, first: int
) -> Tensor:
    """How each row's patch changes what is added to the residual stream from ``first`` on.

    In float32 [row, pos, d]. A patch of z or of neurons goes through the output projection.
    """
    own, other = (
        value[:, first - runs.start :].unflatten(-1, (ask.units, -1))
        for value in (runs.own[index], runs.other[index])
    )
    example, unit = (rows[:, i].to(own.device) for i in (0, 2))
    change = other[example, :, unit].float() - own[example, :, unit].float()
    where = covered(ask, rows, first).to(own.device)
    change = change.masked_fill(~where[..., None], 0)
    if not ask.through[ask.layers[index]]:
        return change
    projection, *norms = (nn.get(path) for path in ask.through[ask.layers[index]])
    change = projected(projection, change.to(own), unit, ask.units)
    if not norms:
        return change
    some, which = example.unique(return_inverse=True)
    before = projection(own[some].flatten(-2)).float()[which]
    new, old = (norms[0](value.to(own)) for value in (before + change, before))
    return new.float() - old.float()


def covered(ask: SimpleNamespace, rows: Tensor, first: int) -> Tensor:
    """Which positions from ``first`` on each row's patch covers [row, pos]."""
    return ask.spots[rows[:, 1], rows[:, 0], first:]


def rerun_full(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, index: int, rows: Tensor, start: int
) -> Tensor:
    """The logits of each row from ``start`` on, by all layers, with the patch written at the site.

    From 0 on this is a full forward pass.
    """
    example = rows[:, 0]
    prompts = {name: value[example] for name, value in ask.base.items()}
    before, after = patch(ask, runs, index, rows, start)
    where = ask.places[ask.layers[index]]
    cache = borrowed(nn, ask, runs, start, example)
    with nn.trace(**inputs(ask, prompts, start, cache)):
        with torch.no_grad():
            live = read(nn, where, before.shape[1])
            write(nn, where, torch.where(before == after, live, after.to(live)))
            logits = logits_of(nn, ask, whole=True)
    return logits


def rerun(
    nn: Any,
    ask: SimpleNamespace,
    runs: SimpleNamespace,
    index: int,
    rows: Tensor,
    start: int,
    size: int = 1,
) -> Tensor:
    """The logits of each row from ``start`` on, entering the model where the patch does.

    ``size`` rows at a time share a sequence (see `nnattr.model.abreast`).
    """
    layer, width = ask.layers[index], ask.base["ids"].shape[1]
    # the layer that the row's residual stream enters; all layers below are skipped
    at = layer + (ask.entry in ("after", "added"))
    looks = not ask.last_only or at + (ask.entry == "attention") < len(ask.layer_paths)
    if not looks:  # no layer above looks back: the last token goes on alone
        start, size = width - 1, 1
    tokens, skipped = width - start, start - runs.start
    order = groups(rows[:, 0], size)
    size = order.shape[1]
    placed, example = rows[order.flatten()], rows[order[:, 0], 0]
    stream = laid(runs.streams[at], placed, skipped, size)
    base = laid(runs.attention[layer], placed, skipped, size) if ask.entry == "attention" else None
    prompts = {name: value[example] for name, value in ask.base.items()}
    if looks:
        cache = borrowed(nn, ask, runs, start, example, at)
        enters = inputs if size == 1 else partial(inputs_abreast, size=size, dtype=stream.dtype)
        given = enters(ask, prompts, start, cache)
    else:
        given = inputs(ask, {name: value[:, start:] for name, value in prompts.items()})
    with nn.trace(**given):
        with torch.no_grad():
            if ask.entry in ("added", "attention"):  # a change to add, or what is put in its place
                new = moved(nn, ask, runs, index, placed, start)
            else:
                _, new = patch(ask, runs, index, placed, start)
            new = end_to_end(new, size)
            if ask.entry in ("before", "after"):
                stream = new
            elif ask.entry == "added":
                stream = (stream.float() + ask.scale * new).to(stream)
            enter(nn, ask, at, stream)
            if ask.entry == "inside":
                write(nn, ask.places[layer], new)
            elif base is not None:
                shift = new / ask.scale if ask.site == "resid_mid" else new
                behind = ask.normed and ask.site != "z"  # a norm follows attention: add after it
                shifted = base if behind else (base.float() + shift).to(base)
                skip(nn, ask.attn[layer], shifted, ask.arity["attention"])
                if behind:
                    norm = nn.get(ask.norms[layer])
                    norm.output = (norm.output.float() + shift).to(base)
            go_on(nn, ask, max(layer, at), tokens, size)
            if size > 1 and ask.last_only:
                head = nn.get(ask.unembed)
                head.input = head.input[:, tokens - 1 :: tokens]
            logits = logits_of(nn, ask)
    back = torch.empty(len(rows), dtype=torch.long)
    back[order.flatten()] = torch.arange(order.numel())
    return apart(logits, size)[back.to(logits.device)]


def laid(kept: Tensor, rows: Tensor, skipped: int, size: int) -> Tensor:
    """What is kept of the base run, for these rows, as it enters the model."""
    return end_to_end(kept[rows[:, 0].to(kept.device), skipped:], size)


def borrowed(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, start: int, example: Tensor, at: int = 0
) -> Any:
    """The base run's cache before ``start``, for a pass of these examples from layer ``at`` on."""
    sandboxed = nn.get(ask.embed).weight.is_meta  # there a cache travels, and functions cannot
    return (fork if sandboxed else lend)(known(nn, ask, runs, start), example, at)


def known(nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, start: int) -> Any:
    """The base run's keys and values before ``start``: what is left of the whole run's, or anew."""
    if start not in runs.caches:
        width = ask.base["ids"].shape[1]
        cut = shortened(runs.cache, width - start) if start else None
        runs.caches[start] = prefix(nn, ask, start)[0] if start and cut is None else cut
    return runs.caches[start]


def go_on(nn: Any, ask: SimpleNamespace, first: int, tokens: int, size: int) -> None:
    """Save work from layer ``first`` on, inside a trace."""
    last, room = len(ask.layer_paths) - 1, {}
    for layer in range(first, last + 1):
        # the last layer goes on with each row's last position alone
        narrow = ask.narrow if layer == last and ask.last_only and tokens > 1 else []
        if narrow and ask.queries and not (ask.entry == "inside" and layer == first):
            path, part = ask.queries
            last_queries(nn.get(path), part, tokens)
        for path in narrow:
            module = nn.get(path)
            module.input = module.input[:, tokens - 1 :: tokens]
            if size > 1 and path != narrow[-1]:
                module.output = module.output.repeat_interleave(tokens, 1)
        for path in ask.gelus[layer]:
            one_step(nn, path, room)
        if size > 1 and narrow:
            module = nn.get(narrow[-1])
            module.output = module.output.repeat_interleave(tokens, 1)


def enter(nn: Any, ask: SimpleNamespace, at: int, stream: Tensor) -> None:
    """Let the rows' residual stream enter layer ``at``, inside a trace."""
    for layer in range(at):
        skip(nn, ask.layer_paths[layer], stream, ask.arity["layer"])
    if at == 0:
        write(nn, (ask.layer_paths[0], "input", None), stream)


def skip(nn: Any, path: str, value: Tensor, arity: int) -> None:
    """Skip a module and let it return ``value``, alone or first in a tuple of ``arity``."""
    nn.get(path).skip(value if arity == 0 else (value, *[None] * (arity - 1)))
