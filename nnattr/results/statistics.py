r"""Statistics over a task's examples: how sure is a mean, and which cells are not noise?

Every cell has one number per example. They speak of the task's examples, not of other tasks; a
missing number (NaN) does not count.

**Sign-flip test.** If a cell has no effect, its number is as likely to be :math:`x` as :math:`-x`.
So flip signs at random and ask how often the mean comes out as far from zero as it did:

.. math:: p = \frac{\#\{s \in \{-1, 1\}^n : |\sum_i s_i x_i| \ge |\sum_i x_i|\}}{2^n}

All patterns are counted where there are few examples; otherwise a seeded sample of them, with the
observed one, :math:`(1 + \#) / (1 + B)`. The smallest possible value is :math:`2^{1-n}`: five
examples can never reach 0.05. It misleads where effects are very skewed about a mean of zero.

**False discoveries.** With many cells some have small p by chance. Benjamini and Hochberg (1995)
keep the share of false ones among those reported below q, on average: sort the p-values and report
the smallest k of m for which :math:`p_{(k)} \le qk/m`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

BLOCK = 512  # sign patterns, or cells, at a time


def standard_error(raw: xr.DataArray) -> xr.DataArray:
    """Standard error of the mean over the examples that have a value; NaN below two."""
    count = raw.notnull().sum("example")
    squares = ((raw - raw.mean("example")) ** 2).sum("example")
    return (squares / (count - 1).where(count > 1) / count) ** 0.5


def bootstrap_bounds(
    data: Float[np.ndarray, "example *cell"], level: float, n_resamples: int, seed: int
) -> Float[np.ndarray, "2 *cell"]:
    """Percentile interval of the mean over examples, by resampling them with replacement.

    NaN for a cell without numbers.
    """
    draw, n = np.random.default_rng(seed), len(data)
    drawn = (draw.integers(n, size=n) for _ in range(n_resamples))
    counts = np.stack([np.bincount(one, minlength=n) for one in drawn]).astype(np.float64)
    flat = data.reshape(n, -1)
    found = np.full((2, flat.shape[1]), np.nan)
    some = np.flatnonzero(~np.isnan(flat).all(0))
    for cells in np.array_split(some, -(-len(some) // BLOCK) or 1):
        known = ~np.isnan(flat[:, cells])
        sums = counts @ np.where(known, flat[:, cells], 0.0)
        with np.errstate(invalid="ignore"):  # a resample may have none of a cell's examples
            means = sums / (counts @ known)
        quantile = np.quantile if known.all() else np.nanquantile
        found[:, cells] = quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found.reshape(2, *data.shape[1:])


def sign_flip_pvalues(
    data: Float[np.ndarray, "example cell"], n_permutations: int, seed: int
) -> Float[np.ndarray, " cell"]:
    """Two-sided p-value of each cell's mean against zero; NaN for a cell without numbers."""
    known = np.isfinite(data)
    values = np.where(known, data, 0.0).astype(np.float64)
    exact = 2 ** (len(values) - 1) <= n_permutations
    # rounding must not tell apart two patterns that give the same mean
    observed = np.abs(values.sum(0)) - 1e-9 * np.abs(values).sum(0)
    hits, total = np.zeros(values.shape[1]), 0
    for signs in _signs(len(values), exact, n_permutations, seed):
        hits += (np.abs(signs @ values) >= observed).sum(0)
        total += len(signs)
    found = hits / total if exact else (hits + 1) / (total + 1)
    return np.where(known.any(0), found, np.nan)


def smallest_pvalue(n: int, n_permutations: int) -> float:
    """The smallest p-value that `sign_flip_pvalues` can give for ``n`` examples."""
    return max(2.0 ** (1 - n), 1 / (n_permutations + 1))


def benjamini_hochberg(pvalues: Float[np.ndarray, " cell"], q: float) -> Bool[np.ndarray, " cell"]:
    """Which cells to report so that at most a share ``q`` of them is false, on average."""
    tested = np.sort(pvalues[np.isfinite(pvalues)])
    ranks = np.arange(1, len(tested) + 1)
    passing = np.flatnonzero(tested <= q * ranks / max(len(tested), 1))
    if not len(passing):
        return np.zeros(pvalues.shape, dtype=bool)
    return np.nan_to_num(pvalues, nan=np.inf) <= tested[passing[-1]]


def _signs(n: int, exact: bool, n_permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Patterns of signs in blocks; if exact, all those whose first sign is plus.

    The others are their negatives, which have the same absolute mean.
    """
    draw = np.random.default_rng(seed)
    total = 2 ** (n - 1) if exact else n_permutations
    for start in range(0, total, BLOCK):
        size = min(BLOCK, total - start)
        if exact:
            bits = np.arange(start, start + size)[:, None] >> np.arange(n) & 1
        else:
            bits = draw.integers(2, size=(size, n))
        yield 1.0 - 2.0 * bits
