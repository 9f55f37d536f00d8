"""How a number is written on a page and in a terminal, with the error that belongs to it."""

from __future__ import annotations

import numpy as np

from nnattr.results import Scores, cells

NBSP = "\N{NO-BREAK SPACE}"  # keeps a number with its sign or unit at the end of a line


def baseline(scores: Scores, run: str) -> tuple[float, float, float]:
    """Of one run: the share of prompts that prefer the answer, the metric's mean and its error."""
    values = scores.baselines.sel(run=run).to_numpy()
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float((values > 0).mean()), float(values.mean()), float(error)


def measured(value: float, error: float, digits: int = 3) -> str:
    """A value with its standard error, if that is known."""
    return cells.measured(value, error, f"+.{digits}f", f".{digits}f", f" ±{NBSP}")
