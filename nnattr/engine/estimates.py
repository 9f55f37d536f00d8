"""Estimates of what patching every cell does, from gradients: one pass shared by all estimators.

==============  =================================================================================
`first_order`   the gradient at the base run, under rules or none, times the change of the cell
`integrated`    the mean of gradients between the runs, times the change: `nnattr.engine.integrated`
`dropped`       magnitudes over passes that drop a layer each: `nnattr.engine.graddrop`
==============  =================================================================================

Inside a job: torch and plain values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from nnattr.engine.base import SITE, observe
from nnattr.engine.cache import fork
from nnattr.engine.contributions import Moved, contributions
from nnattr.engine.estimators import Estimate
from nnattr.engine.graddrop import magnitudes
from nnattr.engine.gradients import Backward, SourceRun, differentiated, source_run
from nnattr.engine.integrated import Start, along_activations, along_inputs
from nnattr.engine.measure import measure, require_own_numbers
from nnattr.engine.memory import portions_for
from nnattr.engine.pattern_patch import patched_by_patterns
from nnattr.engine.proven_rules import require_proven
from nnattr.engine.qk_fix import key_changes, patched_by_queries
from nnattr.engine.question import Question, every_example, question_of


def attribution_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Both baselines and the estimated change for every cell."""
    question = question_of(nn, payload)
    estimate = Estimate(**payload["estimate"])
    portions = portions_for(nn, tick, payload, question, backward=True)
    backward = None
    for some in portions:
        with portions.attempt():
            if backward is None:
                backward = proven(nn, question, estimate)
            portions.keep(attribute(nn, question.take(some), estimate, backward))
            portions.tick(1, 1)
    return portions.joined()


def proven(nn: Any, question: Question, estimate: Estimate) -> Backward:
    """The model under the estimator's rules, which are shown to act on it."""
    if estimate.columns:
        one = question.base.take(slice(1))
        own = one.cut(int((~one.mask).sum()))  # without its padding
        require_proven(nn, question.layout.embed, own, estimate.columns)
    return Backward(nn, estimate.columns)


def attribute(
    nn: Any, question: Question, estimate: Estimate, backward: Backward
) -> dict[str, Any]:
    """Both baselines and the estimated change for every cell of a portion of the examples."""
    source = source_run(nn, question)
    flow = dropped if estimate.drops else integrated if estimate.path else first_order
    found = flow(nn, question, estimate, source, backward)
    clean = found.pop("clean")
    return {
        **found,
        "source": measure(question, question.source, source.logits, clean),
        "engine": "suffix" if source.start else "full",
        "fell_back": source.because,
        "dtype": str(source.logits.dtype),
    }


def first_order(
    nn: Any, question: Question, estimate: Estimate, source: SourceRun, backward: Backward
) -> dict[str, Any]:
    """Gradients at the base run, times the change of the cell."""
    run = differentiated(backward, question, source)
    moved = moves(nn, question, estimate, source, run.own)
    return {"change": contributions(moved, run.slopes), "base": run.metric, "clean": run.clean}


def integrated(
    nn: Any, question: Question, estimate: Estimate, source: SourceRun, backward: Backward
) -> dict[str, Any]:
    """The mean of gradients on the way to the source run, times the change of the cell."""
    own, metric, clean = plain_run(nn, question, source)
    gap = measure(question, question.source, source.logits, clean) - metric
    moved = moves(nn, question, estimate, source, own)
    way = along_inputs if estimate.path == "inputs" else along_activations
    change, error = way(
        backward, question, source, estimate.shares, Start(metric, clean, gap), moved
    )
    return {"change": change, "completeness": error, "base": metric, "clean": clean}


def dropped(
    nn: Any, question: Question, estimate: Estimate, source: SourceRun, backward: Backward
) -> dict[str, Any]:
    """Magnitudes over backward passes that drop one layer each."""
    own, *_ = plain_run(nn, question, source)
    moved = moves(nn, question, estimate, source, own)
    layout = question.layout
    parts = [layout.places[layer][2] for layer in question.layers]
    in_stream = layout.site.startswith("resid")
    take = partial(magnitudes, moved, question.layers, parts, in_stream)
    run = differentiated(backward, question, source, take=take)
    return {"change": run.taken, "base": run.metric, "clean": run.clean}


def plain_run(
    nn: Any, question: Question, source: SourceRun
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The base run without gradients: its site, its metric, and the clean run's last logits."""
    cache = fork(source.cache, every_example(question))
    run = observe(nn, question, question.base, SITE, source.start, cache)
    logits = source.whole(run.logits)
    clean = (logits if question.base_is_clean else source.logits)[:, -1]
    metric = measure(question, question.base, logits, clean)
    require_own_numbers(question, logits, clean, metric)
    return run.site, metric, clean


def moves(
    nn: Any, question: Question, estimate: Estimate, source: SourceRun, own: list[Tensor]
) -> Moved:
    """How the site moves from the base run to the source run."""
    start, other, keys = source.start, source.site, None
    if estimate.through == "q":
        other = patched_by_queries(nn, question, own, start)
    elif estimate.through == "k":
        keys = key_changes(nn, question, own, start)
    elif question.layout.pattern_paths:
        by_layer = dict(zip(question.layers, own, strict=True))
        other = list(patched_by_patterns(nn, question, by_layer, start).values())
    return Moved(
        own=own,
        other=other,
        spots=question.spots[:, :, start:],
        units=question.units,
        factor=estimate.own,
        keys=keys,
    )
