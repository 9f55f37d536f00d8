"""Several variants of every example, such as sets of edges or paths, in passes that fit.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.measure import measure
from nnattr.engine.memory import bytes_per_row, portions_for
from nnattr.engine.question import Question, question_of
from nnattr.engine.wiring import Wiring, wiring_of
from nnattr.engine.written import Runs, plain_runs
from nnattr.runs.edits import why_whole
from nnattr.runs.portions import Budget, RefusedError, ran_out, release

#: So many tokens of a plain pass fill a processor's caches as one of these does: ten sets of edges
#: took 6.5 plain passes one by one, and 7.9 side by side.
HEAVY = 8
#: ``run(nn, question, wiring, runs, variants, some)``: the logits of some of the variants
#: [variant * example, pos, token], from ``runs.start`` on.
Run = Callable[..., Tensor]


def variants_job(
    nn: Any, tick: Any, payload: dict[str, Any], variants: Any, run: Run, streams: int
) -> dict[str, Any]:
    """Both baselines, and the ``change`` of the metric in each variant [example, variant, 1, 1].

    Args:
        nn: the nnsight model.
        tick: the job's.
        payload: a question's, and its ``wiring`` (see `nnattr.jobs.wiring`).
        variants: what ``run`` is given; its length is how many there are.
        run: see `Run`.
        streams: how many residual streams a variant of an example holds besides a row.
    """
    question = question_of(nn, payload)
    kept = 4 * streams * question.layout.sizes.stream  # bytes per token
    portions = portions_for(nn, tick, payload, question, streams=streams)
    wiring = None
    for some in portions:
        with portions.attempt():
            wiring = wiring or whole_wiring(nn, payload, question)
            asked = question.take(some)
            runs = plain_runs(nn, asked, wiring)
            each = partial(run, nn, asked, wiring, runs, variants)
            budget, count = portions.budget, len(variants)
            change = changes(asked, runs, budget, portions.tick, count, kept, each)
            values = {**said(runs), "change": change[..., None, None]}
            portions.keep(values, rows=0)  # its passes were counted as they ran
    return portions.joined()


def whole_wiring(nn: Any, payload: dict[str, Any], question: Question) -> Wiring:
    """The wiring, proven; refused where edits change what cannot be told apart from a part."""
    if why_whole(nn):
        raise RefusedError("arch", why_whole(nn))
    return wiring_of(nn, payload["wiring"], question.base)


def said(runs: Runs) -> dict[str, Any]:
    """What an answer says besides its changes."""
    return {
        "base": runs.metric,
        "source": runs.source_metric,
        "engine": "suffix" if runs.start else "full",
        "fell_back": runs.because,
        "dtype": str(runs.logits.dtype),
    }


def changes(
    question: Question,
    runs: Runs,
    budget: Budget,
    tick: Any,
    count: int,
    kept: int,
    run: Callable[[slice], Tensor],
) -> Tensor:
    """The change of the metric in every variant [example, variant], as many at a time as fit.

    ``kept`` bytes are held for a token of a variant besides what a row needs.
    """
    n, tokens = len(question), question.base.width - runs.start
    need = n * (kept * tokens + bytes_per_row(question, runs.start, runs.start))
    found, done = list[Tensor](), 0
    while done < count:
        size = budget.fitting(count - done, need, HEAVY * n * tokens)
        try:
            part = changed(question, runs, run(slice(done, done + size)))
        except Exception as error:
            if size == 1 or not ran_out(error):
                raise
            part = None
        if part is None:  # out of the handler, whose traceback kept tensors alive
            budget.shrink(size, need)
            release()
            continue
        budget.saw(size * n)
        found.append(part)
        done += size
        tick(done, count)
    return torch.cat(found).T.float()


def changed(question: Question, runs: Runs, logits: Tensor) -> Tensor:
    """The change of the metric in rows with these logits [variant, example]."""
    example = torch.arange(len(question)).repeat(len(logits) // len(question))
    if not question.last_only:
        before = runs.logits[example.to(logits.device), : runs.start]
        logits = torch.cat([before, logits], 1)
    value = measure(question, question.base, logits, runs.clean, example)
    return (value - runs.metric[example.to(value.device)]).unflatten(0, (-1, len(question)))
