"""Composition scores of pairs of heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nnattr.errors import ResultError
from nnattr.graph import parse
from nnattr.results.cells import Cell, Ranking

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Composition:
    """How much of what each head writes each later head is wired to read.

    Made by `nnattr.composition`.

    Attributes:
        kind: ``"Q"``, ``"K"`` or ``"V"``.
        values: the scores, dims (sender, receiver) with labels such as ``L0H7``; NaN where the
            sender is not in an earlier layer.
        baseline: the mean score of random matrices of the same sizes.
        spread: its standard deviation from one random pair to another.
        fold_norm: whether the norms' weights are in the matrices.
        model: the model's name.
    """

    kind: str
    values: xr.DataArray
    baseline: float
    spread: float
    fold_norm: bool
    model: str

    def pair(self, sender: Any, receiver: Any) -> float:
        """The score of one pair, each given as ``(layer, head)`` or ``"L0H7"``.

        Raises:
            ResultError: there is no such pair of a head and a later one.
        """
        names = [str(parse(one)) for one in (sender, receiver)]
        try:
            found = float(self.values.sel(sender=names[0], receiver=names[1]))
        except KeyError:
            found = float("nan")
        if np.isnan(found):
            raise ResultError(f"{names[0]} and {names[1]} are no pair of a head and a later one.")
        return found

    def top(self, k: int = 10) -> Ranking:
        """The ``k`` pairs with the largest scores; the index is (sender, receiver)."""
        values = self.values.to_numpy()
        order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=None, kind="stable")
        names = [self.values[dim].to_numpy() for dim in ("sender", "receiver")]
        cells = []
        for flat in order[: min(k, int(np.isfinite(values).sum()))]:
            i, j = np.unravel_index(flat, values.shape)
            index = (str(names[0][i]), str(names[1][j]))
            cells.append(Cell(index, " → ".join(index), float(values[i, j]), float("nan")))
        return Ranking(cells)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per pair, with its score and how many spreads it is above the baseline."""
        table = self.values.rename("score").to_dataframe().reset_index().dropna(ignore_index=True)
        return table.assign(spreads=(table["score"] - self.baseline) / self.spread)

    def plot(self, **options: Any) -> go.Figure:
        """The matrix, coloured by the distance from the baseline (see `nnattr.plots.matrix`)."""
        from nnattr.plots.matrix import composition_figure  # as in `Scores.plot`

        return composition_figure(self, **options)

    def __repr__(self) -> str:
        head = (
            f"Composition({self.kind} of {self.model}; random matrices {self.baseline:.4f} "
            f"± {self.spread:.4f})"
        )
        return f"{head}\n{self.top(5)!r}"
