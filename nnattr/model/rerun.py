"""One pass of patched rows: of a whole model, or of what is above and after each row's patch.

`rerun_full` writes the patch at its site and runs everything. `rerun` enters the model where the
patches do: layers below all of them are skipped, positions before come from the base run's cache,
each row joins the others at its own layer, and of the last layer only what the metric reads is
computed to its end. Inside a job: torch and plain values.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.abreast import apart, groups, inputs_abreast
from nnattr.model.caches import borrowed
from nnattr.model.join import WITHIN, enter, entering, keep
from nnattr.model.patched import patch
from nnattr.model.runs import inputs, logits_of, one_step
from nnattr.model.sites import read, write


def rerun_full(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, rows: Tensor, start: int
) -> Tensor:
    """The logits of each row from ``start`` on, by all layers, with the patch written at the site.

    From 0 on this is a full forward pass.
    """
    example = rows[:, 0]
    prompts = {name: value[example] for name, value in ask.base.items()}
    cache = borrowed(nn, ask, runs, start, [example] * len(ask.layer_paths))
    with nn.trace(**inputs(ask, prompts, start, cache)):
        with torch.no_grad():
            for index in rows[:, 4].unique().tolist():
                before, after = patch(ask, runs, index, rows, start)
                here = (rows[:, 4] == index)[:, None, None].to(before.device)
                where = ask.places[ask.layers[index]]
                live = read(nn, where, before.shape[1])
                write(nn, where, torch.where(here & (before != after), after.to(live), live))
            logits = logits_of(nn, ask, whole=True)
    return logits


def rerun(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, rows: Tensor, start: int, size: int = 1
) -> Tensor:
    """The logits of each row from ``start`` on, entering the model where its patch does.

    Rows come in the order of their layers. ``size`` rows of an example at a time share a sequence
    (see `nnattr.model.abreast`).
    """
    tokens, depth = ask.base["ids"].shape[1] - start, len(ask.layer_paths)
    # the layer that each row's residual stream enters, and whether an attention module is behind
    at = torch.tensor(ask.layers)[rows[:, 4]] + (ask.entry in ("after", "added"))
    looks = bool((at + (ask.entry == "attention") < depth).any()) or not ask.last_only
    order = groups(rows[:, 4] * ask.n + rows[:, 0], size if looks else 1)
    size = order.shape[1]
    placed, example, at = rows[order.flatten()], rows[order[:, 0], 0], at[order[:, 0]]
    total, first = len(at), int(at[0])
    # how many sequences enter below a layer, and how many go through its attention
    below = [int((at < layer).sum()) for layer in range(depth + 2)]
    looking = [below[layer + (ask.entry != "attention")] for layer in range(depth)]
    prompts = {name: value[example] for name, value in ask.base.items()}
    if looks:
        cache = borrowed(nn, ask, runs, start, [example[:count] for count in looking])
        dtype = runs.streams[first].dtype
        enters = inputs if size == 1 else partial(inputs_abreast, size=size, dtype=dtype)
        given = enters(ask, prompts, start, cache)
    else:  # no layer looks back: the last tokens go on alone
        given = inputs(ask, {name: value[:, start:] for name, value in prompts.items()})
    room: dict[Any, Tensor] = {}
    with nn.trace(**given):
        with torch.no_grad():
            for layer in range(first, depth + 1):
                old, now = below[layer], below[layer + 1]
                here = SimpleNamespace(layer=layer, old=old, start=start, size=size)
                here.rows = placed[old * size : now * size]
                new = None
                if now > old:
                    stream, new = entering(nn, ask, runs, here)
                    enter(nn, ask, here, stream)
                if layer == depth:
                    break
                keep(nn, ask, ask.layer_paths[layer], total, now)
                if new is not None and ask.entry in WITHIN:
                    WITHIN[ask.entry](nn, ask, runs, here, new)
                go_on(nn, ask, here, tokens, room)
            if size > 1 and ask.last_only:
                head = nn.get(ask.unembed)
                head.input = head.input[:, tokens - 1 :: tokens]
            logits = logits_of(nn, ask)
    back = torch.empty(len(rows), dtype=torch.long)
    back[order.flatten()] = torch.arange(order.numel())
    return apart(logits, size)[back.to(logits.device)]


def go_on(
    nn: Any, ask: SimpleNamespace, here: SimpleNamespace, tokens: int, room: dict[Any, Tensor]
) -> None:
    """Save work in a layer, inside a trace."""
    last = here.layer == len(ask.layer_paths) - 1
    # the last layer goes on with each row's last position alone
    narrow = ask.narrow if last and ask.last_only and tokens > 1 else []
    for path in narrow:
        module = nn.get(path)
        module.input = module.input[:, tokens - 1 :: tokens]
        if here.size > 1 and path != narrow[-1]:
            module.output = module.output.repeat_interleave(tokens, 1)
    for path in ask.gelus[here.layer]:
        one_step(nn, path, room)
    if here.size > 1 and narrow:
        module = nn.get(narrow[-1])
        module.output = module.output.repeat_interleave(tokens, 1)
