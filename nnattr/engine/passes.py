"""Rows as passes, as many at a time as fit, and the change of the metric in each row.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun
from nnattr.engine.forward import run
from nnattr.engine.measure import measure
from nnattr.engine.memory import bytes_per_row
from nnattr.engine.mode import Mode
from nnattr.engine.question import Question
from nnattr.engine.rows import Rows
from nnattr.runs.edits import begin_at
from nnattr.runs.portions import Budget, ran_out, release


def passes(
    nn: Any,
    question: Question,
    base: BaseRun,
    mode: Mode,
    budget: Budget,
    patch: Any,
    rows: Rows,
    start: int,
    size: int = 1,
) -> Iterator[tuple[Rows, Tensor]]:
    """Run rows from ``start`` on, ``size`` of an example in a sequence; pass by pass.

    Where memory runs out the pass is halved, and the budget lowered to what the half needs.
    ``patch`` says how rows are patched (`nnattr.engine.cells.Cells`).

    Yields:
        the rows of a pass and the change of the metric in them [row].
    """
    need = bytes_per_row(question, start, base.start, size)
    while len(rows):
        n = budget.fitting(len(rows), need, question.base.width - start, size)
        try:
            values = changes(nn, question, base, mode, patch, rows.take(slice(n)), start, size)
        except Exception as error:
            if n == 1 or not ran_out(error):
                raise
            values = None
        if values is None:  # out of the handler, whose traceback kept tensors alive
            budget.shrink(n, need)
            release()
            continue
        budget.saw(n)
        yield rows.take(slice(n)), values
        rows = rows.take(slice(n, None))


def changes(
    nn: Any,
    question: Question,
    base: BaseRun,
    mode: Mode,
    patch: Any,
    rows: Rows,
    start: int,
    size: int,
) -> Tensor:
    """The change of the metric in each row of one pass [row]."""
    if mode.full:
        logits = patch.full(rows, start)
    else:
        patch.prepare(rows, start)
        enter = partial(patch.enter, start)
        try:
            logits = run(nn, question, base, rows, enter, mode, start, size)
        finally:  # passes of other kinds skip nothing
            begin_at(nn)
    if not question.last_only:
        before = base.logits[rows.example.to(base.logits.device), :start]
        logits = torch.cat([before, logits], 1)
    value = measure(question, question.base, logits, base.clean, rows.example)
    return value - base.metric[rows.example.to(value.device)]
