"""How a number is written on a page and in a terminal, with the error that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnattr.results import Scores, cells

NBSP = "\N{NO-BREAK SPACE}"  # keeps a number with its sign or unit at the end of a line


@dataclass(frozen=True)
class Baseline:
    """The metric of one run without any patch.

    Attributes:
        preferred: the share of prompts on which it is positive: the answer is preferred.
        mean: its mean over the prompts.
        stderr: the standard error of the mean; NaN for one prompt.
    """

    preferred: float
    mean: float
    stderr: float


def runs(scores: Scores) -> list[str]:
    """The runs whose metric was measured: an ablation has the clean one alone."""
    return [str(run) for run in scores.baselines.dropna("run")["run"].to_numpy()]


def baseline(scores: Scores, run: str) -> Baseline:
    """The metric of one run, ``"clean"`` or ``"corrupted"``, as the scores hold it."""
    values = scores.baselines.sel(run=run).to_numpy()
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Baseline(float((values > 0).mean()), float(values.mean()), float(error))


def measured(value: float, error: float, digits: int = 3) -> str:
    """A value with its standard error, if that is known."""
    return cells.measured(value, error, f"+.{digits}f", f".{digits}f", f" ±{NBSP}")
