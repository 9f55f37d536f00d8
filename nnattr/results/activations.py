"""Activations by site."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import xarray as xr

from nnattr.arguments import Natural, checked
from nnattr.errors import ResultError
from nnattr.results.base import Result
from nnattr.results.dataset import dataset
from nnattr.results.provenance import Provenance

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: What is called otherwise in ``data``, where all sites stand side by side: the coordinates of a
#: pattern's queries, and the axis of the site that is called as its axis is.
OF_QUERIES = {"position": "query_position", "token": "query_token"}
OF_NEURONS = {"neuron": "d_mlp"}


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Result, Mapping[str, xr.DataArray]):
    """Named activations, by site: ``found["z"]``; made by `nnattr.capture`.

    Each is an array in float32 with the dimensions ``example``, ``layer``, ``pos``, and (``head``
    or ``kv_head``, ``d_head``), ``neuron`` or ``d_model``; patterns have ``example``, ``layer``,
    ``head``, ``query_pos``, ``key_pos``. Coordinates of (example, pos): ``position`` from the
    prompt's first token (NaN, as the values, where a shorter prompt has none) and ``token``.

    Attributes:
        data: the same arrays; there the coordinates of a pattern's queries are called
            ``query_position`` and ``query_token``, and the axis of neurons ``d_mlp``.
        provenance: how this was made.
    """

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, xr.DataArray], provenance: Provenance) -> Activations:
        """The activations from one array per site."""
        told = {site: array.rename(_names(array.dims)) for site, array in arrays.items()}
        return cls(dataset(told), provenance)

    @checked
    def __getitem__(self, site: str) -> xr.DataArray:
        if site not in self.data:
            raise ResultError(f"{site!r} was not captured; there are {', '.join(self)}.")
        array = self._variable(site)
        own = _names(["query_pos" if "query_pos" in array.dims else site])
        return array.rename({new: old for old, new in own.items()})

    def __iter__(self) -> Iterator[str]:
        return map(str, self.data.data_vars)

    def __len__(self) -> int:
        return len(self.data.data_vars)

    def __contains__(self, site: object) -> bool:
        return site in self.data.data_vars

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per site and number; ``pos`` and ``query_pos`` count from the first token.

        Large where the activations are.
        """
        tables = [_table(self[site]) for site in self]
        joined = pd.concat(tables, keys=list(self), names=["site", None]).reset_index("site")
        return joined.reset_index(drop=True)

    @checked
    def plot(
        self, site: str | None = None, *, example: Natural = 0, title: str | None = None
    ) -> go.Figure:
        """How long the activation is at each layer and position of one prompt.

        Args:
            site: which; by default the first.
            example: which prompt.
            title: the first line above the figure; None writes one, ``""`` leaves it out.

        Raises:
            ResultError: there is no such site or prompt.
        """
        site = next(iter(self)) if site is None else site
        self[site]
        return self._drawn("plot", site, self._example(example), title=title)

    def __repr__(self) -> str:
        lines = [
            f"{site:>10}  " + ", ".join(f"{dim} {size}" for dim, size in self[site].sizes.items())
            for site in self
        ]
        return "\n".join([f"Activations({self.model})", *lines])


def _table(array: xr.DataArray) -> pd.DataFrame:
    """One site's numbers, row by row, with positions of the prompt and not of the array."""
    table = array.rename("value").to_dataframe().reset_index()
    axis = "query_pos" if "query_pos" in array.dims else "pos"
    table[axis] = table.pop("position")
    return table


def _names(dims: Iterable[Hashable]) -> dict[str, str]:
    """What an array of these dimensions calls otherwise in ``data``."""
    if "query_pos" in dims:
        return OF_QUERIES
    return OF_NEURONS if "neuron" in dims else {}
