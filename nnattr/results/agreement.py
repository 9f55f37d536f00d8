"""Agreement: how well does an estimate stand for the exact scores?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from nnattr.errors import ResultError
from nnattr.results.scores import Scores


@dataclass(frozen=True)
class Agreement:
    """How two results on the same cells agree, over the means of their examples.

    Attributes:
        pearson: correlation of the values; dominated by the few strong cells.
        spearman: correlation of the ranks; dominated by the many weak ones.
        overlap: the share of the ``k`` strongest cells (by absolute value) that both name.
        k: how many cells ``overlap`` compares.
    """

    pearson: float
    spearman: float
    overlap: float
    k: int

    def __str__(self) -> str:
        return (
            f"Pearson r {self.pearson:.3f}, Spearman rho {self.spearman:.3f}, "
            f"top-{self.k} overlap {self.overlap:.0%}"
        )


def agreement(exact: Scores, estimate: Scores, k: int = 10) -> Agreement:
    """Compare an estimate with the exact scores, cell by cell.

    Raises:
        ResultError: the two have different cells, or fewer than two of them.
    """
    one, other = exact.mean().values, estimate.mean().values
    if one.dims != other.dims or one.shape != other.shape:
        raise ResultError(
            f"The results have different cells: {dict(one.sizes)} against {dict(other.sizes)}; "
            "compare two methods on the same model, task, site and positions."
        )
    both = np.isfinite(one) & np.isfinite(other)
    x, y = one.to_numpy()[both], other.to_numpy()[both]
    if len(x) < 2:
        raise ResultError(f"{len(x)} cells are too few to correlate; at least 2 are needed.")
    k = min(k, len(x))
    strongest = [set(np.argsort(-np.abs(values), kind="stable")[:k]) for values in (x, y)]
    shared = len(strongest[0] & strongest[1]) / k
    return Agreement(_correlation(x, y), _correlation(_ranks(x), _ranks(y)), shared, k)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(xr.corr(xr.DataArray(x), xr.DataArray(y)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
