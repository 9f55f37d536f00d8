r"""The metric of the plain runs: as text, and whether the gap between them can be divided by.

A normalised score is a ratio of two means over the task's examples, with the gap between the runs
below the line:

.. math:: s(c) = \frac{\overline{\Delta m(c)}}{\bar g}, \qquad
          g_i = m_i(\text{clean}) - m_i(\text{corrupted})

Scores are shown with a caution where

.. math:: |\bar g| < 2 \, \mathrm{SE}(\bar g), \qquad
          \mathrm{SE}(\bar g) = \sqrt{\tfrac{1}{n (n - 1)} \sum_i (g_i - \bar g)^2}

because a ratio of means is known only if the mean below the line is told from zero: by Fieller's
theorem (1954) its 95 % confidence set is an interval exactly then, and else has no end (with 1.96
to 2.3 in the place of 2 from ten examples on). One example has no spread, and is not judged.

And where the gap is told from zero but has the wrong sign: the behaviour is stronger in the
corrupted run, so that prompts or answers have probably changed places, and yet scores look as good
as ever, for the sign cancels. Which sign is right is known of nnattr's own metrics alone.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from nnattr.metrics import METRICS
from nnattr.results import statistics
from nnattr.results.cells import measured

#: Standard errors that a gap must be away from zero.
AWAY = 2.0
#: Metrics that say how much worse a run is.
WORSE = ("KL", "Loss")


def spelled(baselines: xr.DataArray, metric: str) -> str:
    """The mean metric of each run that was measured, with its standard error, on one line."""
    known = baselines.dropna("run")
    means, errors = known.mean("example"), statistics.standard_error(known)
    runs = [
        f"{run} {measured(float(means.sel(run=run)), float(errors.sel(run=run)))}"
        for run in known["run"].to_numpy()
    ]
    return f"{metric}: {', '.join(runs)}"


def caution(baselines: xr.DataArray, metric: str) -> str:
    """Why scores that are divided by the gap between the runs are not to be trusted, or nothing.

    Args:
        baselines: the metric [run, example], of the clean and of the corrupted run.
        metric: its name, as a provenance has it: ``Loss(last=5)``.
    """
    clean, corrupted = (baselines.sel(run=run, drop=True) for run in ("clean", "corrupted"))
    gap, error = float((clean - corrupted).mean()), _error(clean - corrupted)
    name = metric.partition("(")[0]
    if abs(gap) < AWAY * error:
        return (
            f"the gap between the runs, {measured(gap, error)} (standard error), cannot be told "
            "from zero, and these scores are divided by it: they can have any size and either "
            "sign. Use prompts on which the runs differ, or normalized=False."
        )
    if name in METRICS and (gap > 0) == (name in WORSE):
        said = "higher" if gap > 0 else "lower"
        return (
            f"{name} is {said} in the clean run ({float(clean.mean()):+.4g}) than in the corrupted "
            f"one ({float(corrupted.mean()):+.4g}), which is the wrong way round: did prompts or "
            "answers change places? A score of 1 goes the whole way of that gap."
        )
    return ""


def _error(gaps: xr.DataArray) -> float:
    """The standard error of the mean gap; 0 for one example, whose spread nobody knows."""
    return float(np.nan_to_num(statistics.standard_error(gaps)))
