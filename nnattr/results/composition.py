"""Composition scores of pairs of heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

from nnattr.arguments import Positive, checked
from nnattr.errors import ResultError
from nnattr.graph import parse
from nnattr.results.base import Result
from nnattr.results.cells import Ranking, ranking

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Composition(Result):
    """How much of what each head writes each later head is wired to read.

    Made by `nnattr.weights.composition`.

    Attributes:
        data: ``values`` (see below).
        provenance: how this was made.
        kind: ``"Q"``, ``"K"`` or ``"V"``.
        baseline: the mean score of random matrices of the same sizes.
        spread: its standard deviation from one random pair to another.
        fold_norm: whether the norms' weights are in the matrices.
    """

    VARIABLES: ClassVar = {"values": ("sender", "receiver")}

    kind: str
    baseline: float
    spread: float
    fold_norm: bool

    @property
    def values(self) -> xr.DataArray:
        """The scores, dims (sender, receiver) with labels such as ``L0H7``.

        NaN where the sender is not in an earlier layer.
        """
        return self.data["values"].rename(f"{self.kind}-composition")

    @checked
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
            raise ResultError(f"{names[0]} and {names[1]} are not a head and a later one.")
        return found

    @checked
    def top(self, k: Positive = 10) -> Ranking:
        """The ``k`` pairs with the largest scores; the index is ``((layer, head), (layer, head))``.

        The sender comes first.
        """
        return ranking(self.values, k=k, by="value")

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per pair, with its score and how many spreads it is above the baseline."""
        table = self.values.rename("score").to_dataframe().reset_index().dropna(ignore_index=True)
        return table.assign(spreads=(table["score"] - self.baseline) / self.spread)

    def __repr__(self) -> str:
        head = (
            f"Composition({self.kind} of {self.model}; random matrices {self.baseline:.4f} "
            f"± {self.spread:.4f})"
        )
        return f"{head}\n{self.top(5)!r}"
