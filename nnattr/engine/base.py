"""The two plain runs: what the base run keeps for patched rows, and what is patched in.

Both runs are made alike and begin at the same position, after what all pairs of prompts share, so
that they are the same to the bit where nothing differs.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.cache import Prefixes, fork, inputs_from, prefix_cache
from nnattr.engine.measure import measure, require_own_numbers
from nnattr.engine.pattern_patch import patched_by_patterns
from nnattr.engine.question import Question, every_example
from nnattr.engine.shortcuts import Scratch, one_step_gelu, read_few_logits, read_logits
from nnattr.runs.inputs import PromptBatch, returned_cache
from nnattr.runs.places import read

#: Steps of a run (see `observe`) that read what rows enter with, and how modules return it.
STREAMS = ("stream", "attention", "arity", "end")
#: The step that is the site.
SITE = ("site",)
#: The steps that save work.
SHORT = ("gelu",)


class Observed:
    """What is seen of one plain run.

    Attributes:
        streams: what enters each layer, and what leaves the last one [example, pos, d].
        attention: what attention modules return [example, pos, d].
        arity: how the first attention module and the first layer return: as a tuple of so many, or
            0 for a bare tensor.
        site: the site in each asked layer [example, pos, width].
        logits: of the tokens that the metric reads [example, pos, token].
        cache: the keys and values of all positions, if they were asked for.
        more: what further steps read [example, pos, width], by name, layer by layer.
    """

    def __init__(self) -> None:
        self.streams: list[Tensor] = []
        self.attention: list[Tensor] = []
        self.arity: list[int] = []
        self.site: list[Tensor] = []
        self.logits = torch.empty(0)
        self.cache: Any = None
        self.more: dict[str, list[Tensor]] = {}


class BaseRun:
    """What is known before anything is patched, at the positions from ``start`` on.

    Attributes:
        start: the position at which all this begins.
        streams: the base run's residual stream entering each layer, and that leaving the last one
            [example, pos, d]; empty for full passes.
        attention: what its attention modules return [example, pos, d]; empty for full passes.
        attention_arity, layer_arity: in a tuple of how many modules return that, 0 for none.
        own: the site in the base run, by layer [example, pos, width].
        other: what is patched in, by layer [example, pos, width].
        logits: of the base run [example, pos, token], from position 0 on if the metric reads all.
        clean: of the clean run at the last position [example, token].
        metric: of the base run [example].
        source_metric: of the source run [example].
        prefixes: the base run's keys and values before a position.
        more, other_more: what further steps read of the base run and of the source run
            [example, pos, width], by name, layer by layer.
    """

    def __init__(
        self,
        *,
        start: int,
        streams: list[Tensor],
        attention: list[Tensor],
        attention_arity: int,
        layer_arity: int,
        own: dict[int, Tensor],
        other: dict[int, Tensor],
        logits: Tensor,
        clean: Tensor,
        metric: Tensor,
        source_metric: Tensor,
        prefixes: Prefixes,
        more: dict[str, list[Tensor]],
        other_more: dict[str, list[Tensor]],
    ) -> None:
        self.start = start
        self.streams = streams
        self.attention = attention
        self.attention_arity = attention_arity
        self.layer_arity = layer_arity
        self.own = own
        self.other = other
        self.logits = logits
        self.clean = clean
        self.metric = metric
        self.source_metric = source_metric
        self.prefixes = prefixes
        self.more = more
        self.other_more = other_more


def base_run(
    nn: Any,
    question: Question,
    full: bool,
    more: tuple[str, ...] = (),
    other_more: tuple[str, ...] = (),
    whole_runs: bool = False,
) -> tuple[BaseRun, Tensor]:
    """Both plain runs, and the logits of the base run as one pass from position 0 on.

    Args:
        nn: the nnsight model.
        question: what is asked.
        full: whether rows will be full passes, for which all positions of the site are enough.
        more: further steps of the base run.
        other_more: further steps of the source run.
        whole_runs: begin at 0 though the prompts share more.
    """
    start = 0 if full or whole_runs else first_difference(question)
    short = () if full else SHORT
    steps = (*SITE, *more) if full else (*STREAMS, *SITE, *SHORT, *more)
    keeps = not (full or whole_runs) and bool(
        start or not question.spots[..., 0].all()
    )  # some rows begin later
    ours = observe(nn, question, question.base, short if start else steps, keep_cache=keeps)
    whole, prefixes = ours.logits, Prefixes(ours.cache)
    if start:
        ours = run_from(nn, question, prefixes, question.base, steps, start, whole)
    if question.replacements is None:
        steps = (*SITE, *short, *other_more)
        theirs = run_from(nn, question, prefixes, question.source, steps, start, whole)
    else:
        theirs = replaced(question.replacements, ours)
    return kept(nn, question, start, ours, theirs, prefixes), whole


def replaced(replacements: list[Tensor], run: Observed) -> Observed:
    """A run whose site is what an ablation puts there; all else is as it was."""
    found = Observed()
    found.logits = run.logits
    for value, own in zip(replacements, run.site, strict=True):
        found.site.append(value.to(own).expand_as(own))
    return found


def kept(
    nn: Any,
    question: Question,
    start: int,
    ours: Observed,
    theirs: Observed,
    prefixes: Prefixes,
) -> BaseRun:
    """What is kept of the base run and of the other one."""
    own = dict(zip(question.layers, ours.site, strict=True))
    other = dict(zip(question.layers, theirs.site, strict=True))
    if question.layout.pattern_paths:
        other = patched_by_patterns(nn, question, own, start)
    clean = (ours if question.base_is_clean else theirs).logits[:, -1]
    metric = measure(question, question.base, ours.logits, clean)
    require_own_numbers(question, ours.logits, clean, metric)
    attention_arity, layer_arity = ours.arity or (0, 0)
    return BaseRun(
        start=start,
        streams=ours.streams,
        attention=ours.attention,
        attention_arity=attention_arity,
        layer_arity=layer_arity,
        own=own,
        other=other,
        logits=ours.logits,
        clean=clean,
        metric=metric,
        source_metric=measure(question, question.source, theirs.logits, clean),
        prefixes=prefixes,
        more=ours.more,
        other_more=theirs.more,
    )


def first_difference(question: Question) -> int:
    """The first position at which some example's runs differ (the last one, if none do)."""
    if question.replacements is not None:
        return 0
    differing = (question.base.ids != question.source.ids).int()
    last = differing.shape[1] - 1
    return int(torch.where(differing.any(1), differing.argmax(1), last).min())


def run_from(
    nn: Any,
    question: Question,
    prefixes: Prefixes,
    prompts: PromptBatch,
    steps: tuple[str, ...],
    start: int,
    whole: Tensor,
) -> Observed:
    """A run of all examples that goes on from the base run's keys and values before ``start``.

    Its logits before ``start`` are those of ``whole``, the base run.
    """
    cache = prefix_cache(nn, question, prefixes, start)
    found = observe(nn, question, prompts, steps, start, fork(cache, every_example(question)))
    known = whole[:, : 0 if question.last_only else start]
    found.logits = torch.cat([known, found.logits], 1)
    return found


def observe(
    nn: Any,
    question: Question,
    prompts: PromptBatch,
    steps: tuple[str, ...] = (),
    start: int = 0,
    cache: Any = None,
    keep_cache: bool = False,
) -> Observed:
    """One run from ``start`` on, without gradients: what is asked for of it, and the logits.

    Args:
        nn: the nnsight model.
        question: whose metric and layout count.
        prompts: what is run.
        steps: which of the layout's steps are done. ``"stream"`` reads what enters each layer and
            ``"end"`` what leaves the last one, ``"attention"`` what attention returns, ``"site"``
            the site in the layers that are asked about; ``"arity"`` reads how modules return;
            ``"gelu"`` computes GELUs in one step; any other reads what it says (`Observed.more`).
        start: the first position that is run.
        cache: keys and values of the positions before it.
        keep_cache: whether those of all positions are kept.
    """
    found, scratch, layout = Observed(), Scratch(), question.layout
    lists = {
        "stream": found.streams,
        "end": found.streams,
        "attention": found.attention,
        "site": found.site,
    }
    width = prompts.width - start
    with nn.trace(**inputs_from(layout, prompts, start, cache, keep_cache)):
        with torch.no_grad():
            for layer, there in enumerate(layout.steps):
                for name, where in there:
                    if name not in steps or (name == "site" and layer not in question.layers):
                        continue
                    if name == "gelu":
                        one_step_gelu(nn, where, scratch)
                    elif name == "arity":
                        value = nn.get(where).output
                        found.arity.append(len(value) if isinstance(value, tuple) else 0)
                    else:
                        kept = lists[name] if name in lists else found.more.setdefault(name, [])
                        # a copy: the model may go on to add into what was read
                        kept.append(read(nn, where, width).clone())
            # as rows read theirs; one pass from 0 on is what those are held against
            logits = read_few_logits(nn, question) if start else read_logits(nn, question)
            if keep_cache:
                found.cache = returned_cache(nn.output)
    found.logits = logits
    return found
