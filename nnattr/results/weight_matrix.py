"""Entries of a weight circuit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from nnattr.results.base import Result


@dataclass(frozen=True, eq=False, repr=False)
class WeightMatrix(Result):
    """Some rows and columns of a weight circuit, or where a head would look by position alone.

    Made by ``nnattr.weights.ov(...).block(...)``, its like for QK, and
    `nnattr.weights.position_pattern`. Numpy takes it for its values: ``np.diag(matrix)``.

    Attributes:
        data: ``values`` with two dimensions, of tokens or positions, named by their coordinates.
        provenance: how this was made.
        name: what it is, in words.
    """

    VARIABLES: ClassVar = {"values": None}

    name: str

    @property
    def values(self) -> xr.DataArray:
        """The entries."""
        return self.data["values"].rename(self.name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values.to_numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{size} {dim}" for dim, size in self.values.sizes.items())
        head = f"WeightMatrix({self.name} of {self.model}: {sizes})"
        return f"{head}\n{self.values[:8, :8].to_pandas().round(4)}"
