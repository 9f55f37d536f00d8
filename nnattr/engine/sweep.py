"""Every cell of a site, patched one at a time.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun, base_run
from nnattr.engine.cache import why_unnumbered
from nnattr.engine.cells import Cells
from nnattr.engine.fastest import fastest, resumes
from nnattr.engine.memory import portions_for
from nnattr.engine.mode import Mode, reason
from nnattr.engine.packing import rows_per_sequence
from nnattr.engine.passes import passes
from nnattr.engine.question import Question, question_of, require_edits_in_place
from nnattr.engine.replacements import replacements_of
from nnattr.engine.rows import Rows, by_start, effort, plan
from nnattr.runs.as_built import touched
from nnattr.runs.edits import why_whole
from nnattr.runs.portions import Budget, RefusedError, ran_out

#: Why a model is served by full passes whose probe rows do not agree.
DISAGREES = "the suffix engine and full passes disagree on probe rows"


def patching_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Both baselines and the change of the metric for every cell."""
    return in_portions(nn, tick, payload, question_of(nn, payload))


def ablation_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The change of the metric for every cell, with replacements in place of the source run."""
    return in_portions(nn, tick, payload, question_of(nn, payload, replacements_of(nn, payload)))


def in_portions(nn: Any, tick: Any, payload: dict[str, Any], question: Question) -> dict[str, Any]:
    """`sweep` on portions of the examples.

    A payload may hold ``known``, the changes that were found earlier, NaN where there are none; and
    where the job is called in the client's own process ``keep(some, values)``, which is told after
    every pass what is known of a portion.
    """
    portions = portions_for(nn, tick, payload, question)
    known, keep = payload.get("known"), payload.get("keep")
    if known is None:
        known = torch.full(shape(question), float("nan"))
    for some in portions:
        with portions.attempt():
            kept = None if keep is None else partial(keep, some)
            asked = question.take(some)
            found = sweep(nn, portions.tick, asked, portions.budget, known[some], kept)
            portions.keep(found, rows=0)  # its passes were counted as they ran
    return portions.joined()


def shape(question: Question) -> tuple[int, int, int, int]:
    """How many examples, layers, units and spots there are."""
    return len(question), len(question.layers), question.units, len(question.spots)


def sweep(
    nn: Any, tick: Any, question: Question, budget: Budget, known: Tensor, keep: Any = None
) -> dict[str, Any]:
    """Both runs' metric and its change for every example, layer, unit and spot of a question.

    Rows whose change is ``known`` are left out of the passes; the others run as if these had just
    been done, and come out the same to the bit.
    """
    require_edits_in_place(nn, question.layout)
    found = prepared(nn, question, budget)
    base, rows, mode = found.base, found.rows, found.mode
    patch = Cells(nn, question, base)
    change = torch.zeros(shape(question))
    change[cells(question, rows)] = known[cells(question, rows)]
    values = {
        "change": change,
        "base": base.metric,
        "source": base.source_metric,
        "engine": "full" if mode.full else "suffix",
        "fell_back": mode.because,
        "dtype": str(base.logits.dtype),
    }
    total, done = effort(question, rows), 0
    for some, start in batches(question, rows, mode):
        size = 1
        if mode.packed:
            size = rows_per_sequence(question, start, budget.tokens, mode.longest)
        left = some.take(change[cells(question, some)].isnan())
        done += effort(question, some) - effort(question, left)
        ran_there = passes(nn, question, base, mode, budget, patch, left, start, size)
        for ran, found_there in ran_there:
            change[cells(question, ran)] = found_there.float().cpu()
            done += effort(question, ran)
            tick(done, total)
            if keep is not None:
                keep(values)
    return values


def cells(question: Question, rows: Rows) -> tuple[Tensor, ...]:
    """Where the changes of rows stand: their examples, layers, units and spots."""
    column = torch.zeros(question.layout.depth, dtype=torch.long)
    column[question.layers] = torch.arange(len(question.layers))
    return rows.example, column[rows.layer], rows.unit, rows.spot


def why_full(nn: Any, question: Question) -> str:
    """Why rows of this model have to be full passes, whatever these say; empty if they do not."""
    return why_whole(nn) or why_unnumbered(nn, question.layout.layers)


class Prepared:
    """What patched rows need.

    Attributes:
        base: the plain runs.
        rows: all rows of the question.
        mode: how they are run.
    """

    def __init__(self, base: BaseRun, rows: Rows, mode: Mode) -> None:
        self.base = base
        self.rows = rows
        self.mode = mode


def prepared(nn: Any, question: Question, budget: Budget) -> Prepared:
    """What rows need, by the engine if it serves this model, else for full passes."""
    because = why_full(nn, question)
    if not question.full_passes and not because:
        try:
            found = by_engine(nn, question, budget)
            if found is not None:
                return found
            because = DISAGREES
        except Exception as error:  # whatever the model's own code has against a cache
            if isinstance(error, RefusedError) or ran_out(error):
                raise
            because = reason(error)
    base, _ = base_run(nn, question, full=True)
    rows = plan(question, base.own, base.other, base.start)
    return Prepared(base, rows, Mode(full=True, because=because))


def by_engine(nn: Any, question: Question, budget: Budget) -> Prepared | None:
    """What rows need that the engine runs; None if it does not give what full passes give."""
    base, whole = base_run(nn, question, full=False)
    rows = plan(question, base.own, base.other, base.start)
    if not len(rows):
        return Prepared(base, rows, Mode())
    hooked = touched(nn, question.layout.layers)
    if not resumes(nn, question, base, rows, whole, hooked):
        return None
    del whole  # logits of all positions, which nobody needs any more
    patch = Cells(nn, question, base)
    mode = fastest(nn, question, base, rows, budget, hooked, patch, [rows])
    return None if mode is None else Prepared(base, rows, mode)


def batches(question: Question, rows: Rows, mode: Mode) -> list[tuple[Rows, int]]:
    """Rows that may share passes, and where these begin."""
    if mode.full:
        return [(rows, 0)] if len(rows) else []
    found = by_start(rows, question.base.width)
    if mode.together:
        return found
    return [(some, start) for alike, start in found for some in alike.by_layer()]
