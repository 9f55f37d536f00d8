"""One pass of patched rows: of a whole model, or of what is above and after each row's patch.

`run_full` writes the patches at their site and runs everything. `run` enters the model where the
patches do: layers below all of them are skipped, positions before come from the base run's cache,
each row joins the others at its own layer, and of the last layer only what the metric reads is
computed to its end. With what rows enter is said by ``enter(layer, rows) -> Entry``, so that
another kind of patch is another ``enter``.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun
from nnattr.engine.cache import cache_of_rows, inputs_from
from nnattr.engine.join import PATCH_INSIDE_LAYER, Joint, join_stream, limit_batch
from nnattr.engine.mode import Mode
from nnattr.engine.packing import grouped, pack, packed_inputs, unpack
from nnattr.engine.patches import Entry, patched_site
from nnattr.engine.question import Layout, Question
from nnattr.engine.rows import Rows
from nnattr.engine.shortcuts import Scratch, one_step_gelu, read_few_logits, read_logits
from nnattr.runs.edits import begin_at
from nnattr.runs.inputs import inputs
from nnattr.runs.places import read, write


class Order:
    """How the rows of a pass stand in it: in sequences, those first that enter first.

    Attributes:
        size: how many rows share a sequence.
        rows: in their places [sequence * size]; a sequence may be filled up with its last row.
        place: the place of each row that was given [row].
        example: whose sequence each is [sequence].
        first: the first layer that some row enters.
        below: how many sequences enter below each layer, up to behind the last one.
        attending: how many go through the attention of each layer.
        looks_back: whether any does, so that keys of earlier positions are needed.
    """

    def __init__(
        self,
        *,
        size: int,
        rows: Rows,
        place: Tensor,
        example: Tensor,
        first: int,
        below: list[int],
        attending: list[int],
        looks_back: bool,
    ) -> None:
        self.size = size
        self.rows = rows
        self.place = place
        self.example = example
        self.first = first
        self.below = below
        self.attending = attending
        self.looks_back = looks_back

    def joint(self, layer: int, start: int) -> Joint:
        """The layer of the pass as those rows find it that join there."""
        old, now = self.below[layer], self.below[layer + 1]
        rows = self.rows.take(slice(old * self.size, now * self.size))
        return Joint(layer, rows, self.size, old, start)


def ordered(question: Question, rows: Rows, size: int) -> Order:
    """The rows, in the order of their layers, in sequences of at most ``size`` of one example."""
    layout = question.layout
    enters = rows.layer + (layout.entry in ("after", "added"))
    behind = layout.entry == "attention"  # such rows enter behind their first layer's attention
    looks_back = bool((enters + behind < layout.depth).any()) or not question.last_only
    key = rows.layer * len(question) + rows.example
    order = grouped(key, size if looks_back else 1)
    enters = enters[order[:, 0]]
    below = [int((enters < layer).sum()) for layer in range(layout.depth + 2)]
    place = torch.empty(len(rows), dtype=torch.long)
    place[order.flatten()] = torch.arange(order.numel())
    return Order(
        size=order.shape[1],
        rows=rows.take(order.flatten()),
        place=place,
        example=rows.example[order[:, 0]],
        first=int(enters[0]),
        below=below,
        attending=[below[layer + (not behind)] for layer in range(layout.depth)],
        looks_back=looks_back,
    )


def run(
    nn: Any,
    question: Question,
    base: BaseRun,
    rows: Rows,
    enter: Callable[[int, Rows], Entry],
    mode: Mode,
    start: int,
    size: int = 1,
) -> Tensor:
    """The logits of each row [row, pos, token] from ``start`` on, entering where its patch does.

    Args:
        nn: the nnsight model.
        question: what is asked.
        base: the base run.
        rows: in the order of their layers.
        enter: with what some of them enter a layer.
        mode: how rows are run.
        start: the first position.
        size: how many rows of an example share a sequence (see `nnattr.engine.packing`).
    """
    layout, tokens = question.layout, question.base.width - start
    order, scratch = ordered(question, rows, size), Scratch()
    begin_at(nn, order.first, order.first < layout.depth and bool(order.attending[order.first]))
    with nn.trace(**inputs_of_rows(nn, question, base, order, start)):
        with torch.no_grad():
            for layer in range(order.first, layout.depth + 1):
                joint = order.joint(layer, start)
                entry = enter(layer, joint.rows) if len(joint.rows) else None
                if entry is not None:
                    join_stream(nn, layout, base, joint, pack(entry.stream, order.size))
                if layer == layout.depth:
                    break
                running, total = order.below[layer + 1], len(order.example)
                limit_batch(nn, layout.layers[layer], ("layer",), total, running, mode.unbatched)
                if entry is not None and entry.value is not None:
                    value = pack(entry.value, order.size)
                    patch_inside = PATCH_INSIDE_LAYER[layout.entry]
                    patch_inside(nn, layout, base, joint, mode.unbatched, value)
                cut = mode.narrow and question.last_only and tokens > 1
                finish_layer(nn, layout, joint, tokens, scratch, cut)
            if order.size > 1 and question.last_only:
                head = nn.get(layout.unembed)
                head.input = head.input[:, tokens - 1 :: tokens]
            logits = read_few_logits(nn, question)
    return unpack(logits, order.size)[order.place.to(logits.device)]


def inputs_of_rows(
    nn: Any, question: Question, base: BaseRun, order: Order, start: int
) -> dict[str, Any]:
    """The model's arguments for a pass of rows from ``start`` on."""
    layout, prompts = question.layout, question.base.take(order.example)
    if not order.looks_back:  # the last tokens go on alone
        return inputs(prompts.cut(start), layout.options)
    attending = [order.example[:count] for count in order.attending]
    cache = cache_of_rows(nn, question, base.prefixes, start, attending)
    if order.size > 1:
        dtype = base.streams[order.first].dtype
        return packed_inputs(prompts, layout, start, cache, order.size, dtype)
    return inputs_from(layout, prompts, start, cache)


def finish_layer(
    nn: Any, layout: Layout, joint: Joint, tokens: int, scratch: Scratch, cut: bool
) -> None:
    """Apply the last-position and GELU shortcuts to a layer, inside a trace.

    ``cut`` says whether the last layer goes on with each row's last position alone. What comes out
    of its modules is added to the stream of all positions, so packed rows are filled up again.
    """
    tail = layout.tail if cut and joint.layer == layout.depth - 1 else []
    for path in tail:
        module = nn.get(path)
        module.input = module.input[:, tokens - 1 :: tokens]
        if joint.size > 1 and path != tail[-1]:
            module.output = module.output.repeat_interleave(tokens, 1)
    for path in layout.gelus[joint.layer]:
        one_step_gelu(nn, path, scratch)
    if joint.size > 1 and tail:
        module = nn.get(tail[-1])
        module.output = module.output.repeat_interleave(tokens, 1)


def run_full(nn: Any, question: Question, base: BaseRun, rows: Rows, start: int) -> Tensor:
    """The logits of each row [row, pos, token] from ``start`` on, by all layers.

    The patches are written at their site. From 0 on this is a full forward pass.
    """
    layout = question.layout
    every = [rows.example] * layout.depth
    cache = cache_of_rows(nn, question, base.prefixes, start, every)
    with nn.trace(**inputs_from(layout, question.base.take(rows.example), start, cache)):
        with torch.no_grad():
            for layer in rows.layer.unique().tolist():
                before, after = patched_site(question, base, layer, rows, start)
                there = (rows.layer == layer)[:, None, None].to(before.device)
                where = layout.places[layer]
                live = read(nn, where, before.shape[1])
                write(nn, where, torch.where(there & (before != after), after.to(live), live))
            logits = read_logits(nn, question)
    return logits
