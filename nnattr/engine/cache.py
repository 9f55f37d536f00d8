"""The base run's keys and values, from which other runs go on: made, cut, and handed out.

A forward pass extends the cache that it is given, so each pass gets one of its own.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.question import Layout, Question, sandboxed
from nnattr.engine.shortcuts import Scratch, read_logits
from nnattr.runs.as_built import around, as_built
from nnattr.runs.inputs import PromptBatch, inputs, returned_cache
from nnattr.runs.places import raw

#: Cache classes whose `update` returns the old and the new concatenated and keeps no other state.
JOINING = ("DynamicLayer", "DynamicSlidingWindowLayer")


class Prefixes:
    """The base run's keys and values before a position.

    Attributes:
        whole: those of all positions, or None where nobody asked for them.
        made: those before a position, or None where there are none, by that position. Each is made
            when it is first asked for, and is then the same for all.
    """

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.made: dict[int, Any] = {}


def why_unnumbered(nn: Any, layers: list[str]) -> str:
    """Why rows may not go on from keys and values, or "": layers keep them under other numbers.

    A layer that was moved, in its model, still goes by its old number, and rows that join at its
    place would be given the keys and values of as many rows as there are at another.
    """
    for place, path in enumerate(layers):
        parts = raw(nn.get(path)).modules()
        if any(getattr(part, "layer_idx", place) != place for part in parts):
            return f"the layer at place {place} keeps its keys and values under another number"
    return ""


def prefix(nn: Any, question: Question, stop: int) -> tuple[Any, Tensor | None]:
    """The base run's cache before position ``stop``, and the logits there if the metric reads them.

    Nothing where there is nothing before it.
    """
    if stop == 0:
        return None, None
    options = question.layout.options
    with nn.trace(**inputs(question.base, options, stop=stop, keep_cache=True)):
        with torch.no_grad():
            path = question.layout.unembed
            if question.last_only and all(map(as_built, around(nn, path))):
                head = nn.get(path)  # nobody reads what these tokens predict
                head.skip(head.input[..., :1])
            logits = None if question.last_only else read_logits(nn, question)
            output = nn.output
    return returned_cache(output), logits


def prefix_cache(nn: Any, question: Question, prefixes: Prefixes, start: int) -> Any:
    """The base run's keys and values before ``start``: cut from the whole run's, or made anew."""
    if start not in prefixes.made:
        cut = shortened(prefixes.whole, question.base.width - start) if start else None
        missing = start and cut is None
        prefixes.made[start] = prefix(nn, question, start)[0] if missing else cut
    return prefixes.made[start]


def inputs_from(
    layout: Layout, prompts: PromptBatch, start: int, cache: Any, keep_cache: bool = False
) -> dict[str, Any]:
    """The model's arguments for prompts from ``start`` on, after the keys and values before it."""
    return inputs(
        prompts,
        layout.options,
        start=start,
        cache=cache,
        cache_name=layout.cache_name,
        keep_cache=keep_cache,
        takes_positions=layout.takes_positions,
    )


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


def cache_of_rows(
    nn: Any, question: Question, prefixes: Prefixes, start: int, attending: list[Tensor]
) -> Any:
    """The base run's cache before ``start`` for one pass of rows.

    ``attending`` names for each layer the examples [row] whose keys its attention looks at.
    """
    there = sandboxed(nn, question.layout)  # there a cache travels, and functions cannot
    cache = prefix_cache(nn, question, prefixes, start)
    return fork(cache, attending) if there else borrow(cache, attending)


def fork(cache: Any, attending: list[Tensor]) -> Any:
    """A cache of its own for rows of these examples, by layer; a layer without any stays whole."""
    if cache is None:
        return None
    new = copied(cache)
    for layer, example in zip(new.layers, attending, strict=False):
        select_rows(layer, example)
    return new


def select_rows(layer: Any, example: Tensor) -> None:
    """Let a cache layer hold rows of these examples, if there are any."""
    if len(example):
        rows = example.to(layer.keys.device)
        layer.keys, layer.values = layer.keys[rows], layer.values[rows]


def borrow(cache: Any, attending: list[Tensor]) -> Any:
    """A cache for one pass of rows of these examples, whose keys nobody asks for afterwards.

    A layer copies what is cached next to what is new once, when its turn comes, and keeps neither;
    those of kinds we do not know are forked.
    """
    if cache is None:
        return None
    new, scratch = copied(cache), Scratch()
    for layer, example in zip(new.layers, attending, strict=False):
        if type(layer).__name__ in JOINING:
            rows = example.to(layer.keys.device)
            layer.update = partial(extended, scratch, layer.keys, layer.values, rows)
        else:
            select_rows(layer, example)
    return new


def extended(
    scratch: Scratch,
    old_keys: Tensor,
    old_values: Tensor,
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor]:
    """What a cache layer's ``update`` returns: these rows of the old, and after them the new."""
    both = []
    for name, old, new in (("keys", old_keys, keys), ("values", old_values, values)):
        cached = old.shape[-2]
        shape = (*new.shape[:-2], cached + new.shape[-2], new.shape[-1])
        whole = scratch.like(name, new, shape)
        torch.index_select(old, 0, rows, out=whole[..., :cached, :])
        whole[..., cached:, :] = new
        both.append(whole)
    return both[0], both[1]
