"""The fastest mode that agrees with full passes, on the model and the question at hand.

First, a base run that goes on from its own keys and values must reproduce its one pass. Then, on
two probe rows, the engine must give what full passes give. Modes are tried from the fastest to the
safest; sequences longer than those that were compared are never used later.

Hooks, and forwards of somebody's own, may do another thing in every layer, and count positions from
where a pass begins. Where a model has such, every layer with one is probed, wherever passes begin
the base run is tried, and rows share no sequence. Layers that an edit changes are probed likewise.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import SHORT, BaseRun, run_from
from nnattr.engine.cache import prefix_cache
from nnattr.engine.measure import measure
from nnattr.engine.mode import Mode
from nnattr.engine.packing import can_pack, rows_per_sequence
from nnattr.engine.passes import passes
from nnattr.engine.question import Question, sandboxed
from nnattr.engine.rows import Rows, by_start, joined
from nnattr.runs.edits import edited_layers
from nnattr.runs.patterns import implementations
from nnattr.runs.portions import Budget, ran_out
from nnattr.runs.tolerance import pass_tolerance, same_logits

#: The kernel whose mask is an object for the whole batch, which rows that join cannot be cut from:
#: given another number of rows it ends the process, so this is not left to the comparison.
BLOCKS = "flex_attention"


class Probes:
    """The rows on which modes are compared, and what full passes give for them.

    Attributes:
        rows: see `probe_rows`, in the order of their layers.
        start: where their passes begin.
        expected: the change of the metric in full passes [row].
        tolerance: how far a mode may be off [row].
    """

    def __init__(self, rows: Rows, start: int, expected: Tensor, tolerance: Tensor) -> None:
        self.rows = rows
        self.start = start
        self.expected = expected
        self.tolerance = tolerance


def resumes(
    nn: Any,
    question: Question,
    base: BaseRun,
    rows: Rows,
    whole: Tensor,
    hooked: list[int] | None = None,
) -> bool:
    """Whether the base run gives its own numbers when it goes on from its keys and values.

    Args:
        nn: the nnsight model.
        question: what is asked.
        base: the base run, which has gone on from ``base.start``, if that is not 0.
        rows: those that will be run; the last of them begin where this is tried.
        whole: the base run's logits as one pass.
        hooked: the layers that are not as they were built, or None (`touched`).
    """
    if not same_result(question, base, whole):
        return False
    last = [0 if base.start else int(rows.start.max())]
    starts = last if hooked is None else [start for _, start in by_start(rows, question.base.width)]
    for start in starts:
        if start not in (0, base.start):
            later = run_from(nn, question, base.prefixes, question.base, SHORT, start, whole)
            if not same_result(question, base, later.logits):
                return False
    return True


def same_result(question: Question, base: BaseRun, logits: Tensor) -> bool:
    """Whether another way to the base run gives its last logits, and its metric."""
    value = measure(question, question.base, logits, base.clean)
    near = pass_tolerance(base.logits) * base.metric.abs().max().clamp(min=1.0)
    agrees = same_logits(logits[:, -1], base.logits[:, -1])
    return agrees and bool((value - base.metric).abs().max() <= near)


def fastest(
    nn: Any,
    question: Question,
    base: BaseRun,
    rows: Rows,
    budget: Budget,
    hooked: list[int] | None,
    patch: Any,
    groups: list[Rows],
) -> Mode | None:
    """The fastest mode that gives what full passes give on some of the rows; None if none does.

    ``hooked`` are the layers that are not as they were built, or None (`touched`); ``patch`` says
    how rows are patched; of each of the ``groups``, which are all rows, some are compared.
    """
    changed = [*(hooked or []), *edited_layers(nn)]
    chosen = joined([probe_rows(question, some, changed) for some in groups])
    chosen = chosen.take(chosen.layer.argsort(stable=True))
    probes = full_passes(nn, question, base, budget, patch, chosen)
    last = int(rows.start.max())
    plain = hooked is None
    modes = candidates(nn, question, base, budget, probes, last) if plain else unpacked(probes)
    for mode in modes:
        agreed = agreeing(nn, question, base, budget, patch, probes, mode)
        if agreed is not None:
            return agreed
    return None


def probe_rows(question: Question, rows: Rows, changed: list[int]) -> Rows:
    """The two rows on which modes are compared: one of the first layer, one of a later.

    Of examples with the most padding and with the least, where there is most to go wrong. Of the
    later layers it is the middle one whose rows go through a layer's attention. Besides there is a
    row of every ``changed`` layer and of the one before, whose rows may enter that.
    """
    layout = question.layout
    through = layout.entry in ("before", "inside")
    early, *above = rows.by_layer()
    above = [some for some in above if int(some.layer[0]) + 1 - through < layout.depth]
    late = above[len(above) // 2] if above else early
    padding = (~question.base.mask).sum(1)
    most = padding[early.example].argsort(stable=True, descending=True)[:1]
    least = padding[late.example].argsort(stable=True)
    other = least[-1:] if late is early else least[:1]
    near = {*changed, *(layer - 1 for layer in changed)}
    more = [some.take(slice(1)) for some in rows.by_layer() if int(some.layer[0]) in near]
    found = joined([early.take(most), late.take(other), *more])
    return found.take(found.layer.argsort(stable=True))


def full_passes(
    nn: Any, question: Question, base: BaseRun, budget: Budget, patch: Any, rows: Rows
) -> Probes:
    """Probe rows with what full passes give for them."""
    start = int(rows.start.min())
    found = passes(nn, question, base, Mode(full=True), budget, patch, rows, start)
    expected = torch.cat([values for _, values in found])
    size = torch.maximum(expected.abs(), base.metric.abs().max()).clamp(min=1.0)
    return Probes(rows, start, expected, pass_tolerance(base.logits) * size)


def candidates(
    nn: Any, question: Question, base: BaseRun, budget: Budget, probes: Probes, last: int
) -> Iterator[Mode]:
    """Modes worth trying, the fastest first; ``last`` is where the last rows begin."""
    layers = probes.rows.layer
    # in a sandbox a layer's arguments, cache and all, would travel at every join
    joins = bool(layers[0] < layers[-1]) and not sandboxed(nn, question.layout)
    joins = joins and BLOCKS not in implementations(nn)
    packs = can_pack(nn, question, prefix_cache(nn, question, base.prefixes, probes.start))
    if rows_per_sequence(question, last, budget.tokens, None) == 1:  # as no pass would be packed
        packs = False
    either, never = (True, False), (False,)
    for together, packed in product(either if joins else never, either if packs else never):
        yield Mode(together=together, packed=packed, narrow=True, unbatched=set())
    yield Mode(unbatched=set())


def unpacked(probes: Probes) -> Iterator[Mode]:
    """The modes in which a module sees every row as a sequence of its own, and whole."""
    if bool(probes.rows.layer[0] < probes.rows.layer[-1]):
        yield Mode(together=True, unbatched=set())
    yield Mode(unbatched=set())


def agreeing(
    nn: Any,
    question: Question,
    base: BaseRun,
    budget: Budget,
    patch: Any,
    probes: Probes,
    mode: Mode,
) -> Mode | None:
    """The mode, with what was learnt from the comparison, if it gives what full passes give."""
    start, size = probes.start, 1
    if mode.packed:  # fill a sequence with copies of the probes
        size = rows_per_sequence(question, start, budget.tokens, None, least=2)
    repeated = probes.rows.take(torch.arange(len(probes.rows)).repeat_interleave(size))
    found: list[Tensor] = []
    try:
        for some in [repeated] if mode.together else repeated.by_layer():
            parts = passes(nn, question, base, mode, budget, patch, some, start, size)
            found += [values for _, values in parts]
    except Exception as error:  # whatever the model's own code has against a skipped layer
        if ran_out(error):
            raise
        return None
    if mode.together and len(found) > 1:  # memory split the probes, so joining was not exercised
        return None
    off = (torch.cat(found).unflatten(0, (-1, size)) - probes.expected[:, None]).abs()
    if not (off <= probes.tolerance[:, None]).all():
        return None
    return Mode(
        together=mode.together,
        packed=mode.packed,
        narrow=mode.narrow,
        longest=start + size * (question.base.width - start),
        unbatched=frozenset(mode.unbatched),
    )
