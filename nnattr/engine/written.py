"""The two plain runs of a question about edges: what every part writes in them.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from nnattr.engine.base import first_difference, observe
from nnattr.engine.cache import Prefixes, fork, inputs_from, prefix_cache
from nnattr.engine.fastest import same_result
from nnattr.engine.measure import measure, require_own_numbers
from nnattr.engine.mode import reason
from nnattr.engine.question import Question, every_example
from nnattr.engine.shortcuts import read_few_logits, read_logits
from nnattr.engine.wiring import Wiring
from nnattr.runs.inputs import PromptBatch
from nnattr.runs.places import read
from nnattr.runs.portions import RefusedError, ran_out

#: Why runs begin at the first token though their prompts share more than that.
DISAGREES = "the base run's logits are others when it goes on from its keys and values"


class Written:
    """What the parts of a run write, from some position on.

    Attributes:
        streams: what enters each layer, and what leaves the last one [example, pos, d].
        z: what enters attention's output projection, by layer [example, pos, heads * d_head].
        mlp: the MLP's contribution, by layer [example, pos, d]; empty without MLPs.
        layer_arity: in a tuple of how many a layer returns its stream, 0 for none.
        logits: of the tokens that the metric reads [example, pos, token].
        cache: the keys and values of all positions, if they were asked for.
    """

    def __init__(self) -> None:
        self.streams: list[Tensor] = []
        self.z: list[Tensor] = []
        self.mlp: list[Tensor] = []
        self.layer_arity = 0
        self.logits = torch.empty(0)
        self.cache: Any = None


class Runs:
    """Both plain runs.

    Attributes:
        start: the position at which what is kept of them begins.
        because: why that is 0, if it could be later.
        base, other: what their parts write from there on.
        logits: of the base run [example, pos, token], from position 0 on if the metric reads all.
        clean: of the clean run at the last position [example, token].
        metric, source_metric: of both [example].
        prefixes: the base run's keys and values before a position.
    """

    def __init__(
        self,
        *,
        start: int,
        because: str,
        base: Written,
        other: Written,
        logits: Tensor,
        clean: Tensor,
        metric: Tensor,
        source_metric: Tensor,
        prefixes: Prefixes,
    ) -> None:
        self.start = start
        self.because = because
        self.base = base
        self.other = other
        self.logits = logits
        self.clean = clean
        self.metric = metric
        self.source_metric = source_metric
        self.prefixes = prefixes


def plain_runs(nn: Any, question: Question, wiring: Wiring) -> Runs:
    """Both runs, from the first position on at which some example's prompts differ.

    From the first of all where full passes are asked for, and where the base run is another one
    when it goes on from its keys and values.
    """
    start = 0 if question.full_passes else first_difference(question)
    if not start:
        return runs_from(nn, question, wiring, 0, Prefixes(None), torch.empty(0), "")
    seen = observe(nn, question, question.base, keep_cache=True)
    prefixes, because = Prefixes(seen.cache), DISAGREES
    try:
        found = runs_from(nn, question, wiring, start, prefixes, seen.logits, "")
        if same_result(question, cast("Any", found), seen.logits):
            return found
    except Exception as error:  # whatever the model's own code has against a cache
        if isinstance(error, RefusedError) or ran_out(error):
            raise
        because = reason(error)
    return runs_from(nn, question, wiring, 0, Prefixes(None), torch.empty(0), because)


def runs_from(
    nn: Any,
    question: Question,
    wiring: Wiring,
    start: int,
    prefixes: Prefixes,
    whole: Tensor,
    because: str,
) -> Runs:
    """Both runs from ``start`` on; before it their logits are those of ``whole``, the base run."""
    cache = prefix_cache(nn, question, prefixes, start) if start else None
    both = []
    for prompts in (question.base, question.source):
        own = fork(cache, every_example(question))
        found = read_run(nn, question, wiring, prompts, start, own)
        if start and not question.last_only:
            found.logits = torch.cat([whole[:, :start], found.logits], 1)
        both.append(found)
    base, other = both
    clean = (base if question.base_is_clean else other).logits[:, -1]
    metric = measure(question, question.base, base.logits, clean)
    require_own_numbers(question, base.logits, clean, metric)
    return Runs(
        start=start,
        because=because,
        base=base,
        other=other,
        logits=base.logits,
        clean=clean,
        metric=metric,
        source_metric=measure(question, question.source, other.logits, clean),
        prefixes=prefixes,
    )


def read_run(
    nn: Any, question: Question, wiring: Wiring, prompts: PromptBatch, start: int, cache: Any
) -> Written:
    """One run from ``start`` on, and what its parts write."""
    found = Written()
    with nn.trace(**inputs_from(question.layout, prompts, start, cache)):
        with torch.no_grad():
            for layer in range(wiring.depth):
                read_layer(nn, wiring, layer, prompts.width - start, found)
            logits = read_few_logits(nn, question) if start else read_logits(nn, question)
    found.logits = logits
    return found


def read_layer(nn: Any, wiring: Wiring, layer: int, width: int, found: Written) -> None:
    """Read what is written in a layer, inside a trace; of the last one also what leaves it."""
    path, last = wiring.layers[layer], layer == wiring.depth - 1
    found.streams.append(read(nn, (path, "input", None)).clone())
    found.z.append(read(nn, wiring.z[layer]).clone())
    if wiring.mlp_out:
        found.mlp.append(read(nn, wiring.mlp_out[layer], width).clone())
    if layer == 0 or last:
        output = nn.get(path).output
        found.layer_arity = len(output) if isinstance(output, tuple) else 0
        if last:
            found.streams.append((output[0] if isinstance(output, tuple) else output).clone())
