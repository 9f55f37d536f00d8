"""Rows that each have one cell of a site patched: with what they enter, and as full passes.

What a pass asks of the rows that it runs: anything with the methods of `Cells` is another kind.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nnattr.engine.base import BaseRun
from nnattr.engine.forward import run_full
from nnattr.engine.patches import Entry, enter_patched
from nnattr.engine.question import Question
from nnattr.engine.rows import Rows


class Cells:
    """Rows of patched cells.

    Attributes:
        nn: the nnsight model.
        question: whose cells they are.
        base: the base run.
    """

    def __init__(self, nn: Any, question: Question, base: BaseRun) -> None:
        self.nn = nn
        self.question = question
        self.base = base

    def prepare(self, rows: Rows, start: int) -> None:
        """What must be known of rows before their pass from ``start`` on: nothing."""

    def enter(self, start: int, layer: int, rows: Rows) -> Entry:
        """With what rows enter a layer of a pass from ``start`` on, inside its trace."""
        return enter_patched(self.nn, self.question, self.base, start, layer, rows)

    def full(self, rows: Rows, start: int) -> Tensor:
        """The logits of each row [row, pos, token] from ``start`` on, by all layers."""
        return run_full(self.nn, self.question, self.base, rows, start)
