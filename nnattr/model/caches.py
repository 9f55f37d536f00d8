"""The base run's keys and values, from which other runs go on: made, shortened, and handed out.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.runs import inputs, lasting, logits_of, observe, same, shared

#: Cache layers whose `update` returns the old next to the new, and what they keep is not asked for.
JOINING = ("DynamicLayer", "DynamicSlidingWindowLayer")
#: Shared tokens below which a cache of them costs more passes than it saves.
WORTH_SHARING = 256


def prefix(nn: Any, ask: SimpleNamespace, stop: int) -> tuple[Any, Tensor | None]:
    """The base run's cache before position ``stop``, and the logits there if the metric reads them.

    Nothing where there is nothing before it.
    """
    if stop == 0:
        return None, None
    given = inputs(ask, ask.base, stop=stop)
    given["use_cache"] = True
    with nn.trace(**given):
        with torch.no_grad():
            if ask.last_only:  # nobody reads what these tokens predict
                head = nn.get(ask.unembed)
                head.skip(head.input[..., :1])
            logits = None if ask.last_only else logits_of(nn, ask)
            output = nn.output
    return output.past_key_values, logits


def shortened(cache: Any, tokens: int) -> Any:
    """A cache without its last tokens; None where a sliding window has forgotten too much."""
    if cache is None:
        return None
    new = copied(cache)
    try:
        new.crop(-tokens)
    except (RuntimeError, ValueError):
        return None
    return new


def copied(cache: Any) -> Any:
    """A cache of its own, of the same keys and values: those that it rebinds leave ``cache`` be."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def fork(cache: Any, looking: list[Tensor]) -> Any:
    """A cache of its own (a forward pass extends the cache it is given) for rows of these examples.

    ``looking`` names them for each layer, in order; where nobody looks a layer is left as it is.
    """
    if cache is None:
        return None
    new = copied(cache)
    for layer, example in zip(new.layers, looking, strict=False):
        taken(layer, example)
    return new


def taken(layer: Any, example: Tensor) -> None:
    """Let a cache layer hold rows of these examples, if there are any."""
    if len(example):
        rows = example.to(layer.keys.device)
        layer.keys, layer.values = layer.keys[rows], layer.values[rows]


def lend(cache: Any, looking: list[Tensor]) -> Any:
    """A cache for one pass of rows of these examples (see `fork`), after which nobody asks for it.

    A layer copies what is cached next to what is new once, when its turn comes, and keeps neither;
    those of kinds we do not know are forked.
    """
    if cache is None:
        return None
    new, room = copied(cache), {}
    for layer, example in zip(new.layers, looking, strict=False):
        if type(layer).__name__ in JOINING:
            rows = example.to(layer.keys.device)
            layer.update = partial(extended, room, layer.keys, layer.values, rows)
        else:
            taken(layer, example)
    return new


def extended(
    room: dict[Any, Tensor],
    old_keys: Tensor,
    old_values: Tensor,
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor]:
    """What a cache layer's ``update`` returns: these rows of the old, and after them the new."""
    joined = []
    for name, old, new in (("keys", old_keys, keys), ("values", old_values, values)):
        known = old.shape[-2]
        both = lasting(room, name, new, (*new.shape[:-2], known + new.shape[-2], new.shape[-1]))
        torch.index_select(old, 0, rows, out=both[..., :known, :])
        both[..., known:, :] = new
        joined.append(both)
    return joined[0], joined[1]


def resumable(nn: Any, ask: SimpleNamespace) -> int:
    """Where runs may begin: after what all pairs share, if that pays and the model allows it.

    It does where it gives the same logits when it goes on from a cache; else the answer is 0.
    """
    start = shared(ask)
    if ask.n * start < WORTH_SHARING:
        return 0
    one = SimpleNamespace(**{**vars(ask), "base": {k: v[:1] for k, v in ask.base.items()}})
    _, whole = observe(nn, one, one.base, ())
    try:
        cache, _ = prefix(nn, one, start)
        _, resumed = observe(nn, one, one.base, (), start, cache)
    except Exception:  # whatever the model's own code has against a cache
        return 0
    return start if same(resumed[:, -1], whole[:, -1]) else 0


def known(nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, start: int) -> Any:
    """The base run's keys and values before ``start``: what is left of the whole run's, or anew."""
    if start not in runs.caches:
        width = ask.base["ids"].shape[1]
        cut = shortened(runs.cache, width - start) if start else None
        runs.caches[start] = prefix(nn, ask, start)[0] if start and cut is None else cut
    return runs.caches[start]


def borrowed(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, start: int, looking: list[Tensor]
) -> Any:
    """The base run's cache before ``start``, for these examples in each layer."""
    sandboxed = nn.get(ask.embed).weight.is_meta  # there a cache travels, and functions cannot
    return (fork if sandboxed else lend)(known(nn, ask, runs, start), looking)
