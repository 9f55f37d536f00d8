"""Sets of edges patched, each set's edges together: the job, in passes that fit.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.edge_sets import EdgeSets
from nnattr.engine.joint_pass import joint_logits
from nnattr.engine.measure import measure
from nnattr.engine.memory import bytes_per_example, bytes_per_row
from nnattr.engine.question import Question, question_of
from nnattr.engine.wiring import Wiring, wiring_of
from nnattr.engine.written import Runs, plain_runs
from nnattr.runs.edits import why_whole
from nnattr.runs.portions import Budget, Portions, RefusedError, ran_out, release


def joint_edges_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Both baselines, and the change of the metric with each set patched [example, set].

    Besides a question's, a payload has ``wiring`` (see `nnattr.jobs.wiring`), ``senders`` and
    ``readers``, parts in plain values, and ``sets`` [set, sender, reader], bool.
    """
    question = question_of(nn, payload)
    wiring = Wiring(payload["wiring"])
    edges = EdgeSets(
        payload["senders"], payload["readers"], payload["sets"], wiring.heads, wiring.kv_heads
    )
    portions = Portions(
        nn,
        tick,
        question.layout.embed,
        len(question),
        payload["rows"],
        need=bytes_per_example(question) + bytes_of_a_set(question, edges, question.base.width),
        max_memory=payload["max_memory"],
        tokens=payload["tokens"],
    )
    for some in portions:
        with portions.attempt():
            if why_whole(nn):
                raise RefusedError("arch", why_whole(nn))
            if not wiring.fronts:
                wiring = wiring_of(nn, payload["wiring"], question.base)
            asked = question.take(some)
            found = jointly(nn, portions.tick, asked, wiring, edges, portions.budget)
            portions.keep(found, rows=0)  # its passes were counted as they ran
    return portions.joined()


def jointly(
    nn: Any, tick: Any, question: Question, wiring: Wiring, edges: EdgeSets, budget: Budget
) -> dict[str, Any]:
    """Both runs' metric and its change with each set patched, for a portion of the examples."""
    runs = plain_runs(nn, question, wiring)
    found, done, n = list[Tensor](), 0, len(question)
    tokens = question.base.width - runs.start
    need = n * bytes_of_a_set(question, edges, tokens)
    need += n * bytes_per_row(question, runs.start, runs.start)
    while done < len(edges):
        size = budget.fitting(len(edges) - done, need, n * tokens)
        try:
            part = changes(nn, question, wiring, runs, edges, slice(done, done + size))
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
        tick(done, len(edges))
    return {
        "change": torch.cat(found).T.float(),
        "base": runs.metric,
        "source": runs.source_metric,
        "engine": "suffix" if runs.start else "full",
        "fell_back": runs.because,
        "dtype": str(runs.logits.dtype),
    }


def changes(
    nn: Any, question: Question, wiring: Wiring, runs: Runs, edges: EdgeSets, some: slice
) -> Tensor:
    """The change of the metric with some of the sets patched, each together [set, example]."""
    logits = joint_logits(nn, question, wiring, runs, edges, some)
    example = torch.arange(len(question)).repeat(len(logits) // len(question))
    if not question.last_only:
        before = runs.logits[example.to(logits.device), : runs.start]
        logits = torch.cat([before, logits], 1)
    value = measure(question, question.base, logits, runs.clean, example)
    return (value - runs.metric[example.to(value.device)]).unflatten(0, (-1, len(question)))


def bytes_of_a_set(question: Question, edges: EdgeSets, tokens: int) -> int:
    """The bytes that one example of one set needs besides a row: changes, and readers' inputs."""
    readers = max((len(some) for some in edges.readers.values()), default=0)
    return 4 * tokens * question.layout.sizes.stream * (len(edges.senders) + 8 * readers)
