"""A head's attention scores, by where its queries and keys come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from nnattr.errors import ResultError
from nnattr.graph import Part
from nnattr.results.cells import Cell, Ranking

if TYPE_CHECKING:
    import plotly.graph_objects as go

View = Literal["spread", "query", "key", "scores", "total", "pattern"]


@dataclass(frozen=True, eq=False)
class AttentionParts:
    """What a head's queries, keys and scores are sums of; made by `nnattr.decompose_attention`.

    Positions count from each prompt's first token; there is NaN where a shorter prompt has none,
    and in scores where a key comes after its query.

    Attributes:
        data: variables ``query`` and ``key`` (example, component, pos), the lengths of the parts;
            ``spread`` (example, query, key), the standard deviation of a pair's scores over the
            entries that are seen; ``scores`` (example, pair, query_pos, key_pos) of some pairs;
            ``total`` and ``pattern`` (example, query_pos, key_pos), the head's own scores (before a
            soft-cap, if the model has one) and attention.
        tokens: each prompt's tokens.
        head: (layer, head).
        model: the model's name.
    """

    data: xr.Dataset
    tokens: tuple[tuple[str, ...], ...]
    head: tuple[int, int]
    model: str

    @property
    def components(self) -> list[str]:
        """The parts: embeddings, heads and MLPs of earlier layers, biases."""
        return [str(name) for name in self.data["component"].to_numpy()]

    def top(self, k: int = 10) -> Ranking:
        """The ``k`` pairs (query component, key component) whose scores vary most."""
        mean = self.data["spread"].mean("example")
        values = mean.to_numpy()
        cells = []
        for flat in np.argsort(-values, axis=None, kind="stable")[:k]:
            i, j = np.unravel_index(flat, values.shape)
            index = (self.components[i], self.components[j])
            cells.append(Cell(index, " → ".join(index), float(values[i, j]), float("nan")))
        return Ranking(cells)

    def plot(
        self, what: View = "spread", *, example: int = 0, pair: str | None = None, **options: Any
    ) -> go.Figure:
        """One view as a figure, not shown.

        Args:
            what: ``"spread"``, the matrix of pairs (mean over prompts); ``"query"`` or ``"key"``,
                the parts' lengths at each position; ``"scores"`` of one ``pair``, the head's
                ``"total"`` or its ``"pattern"``, queries down, keys across.
            example: which prompt.
            pair: for ``"scores"``, one of ``data["pair"]``; by default the first.
            **options: see `nnattr.plots.matrix`.

        Raises:
            ResultError: there is no such view, prompt or pair.
        """
        from nnattr.plots.matrix import attention_figure  # as in `Scores.plot`

        return attention_figure(self, self.view(what, example, pair), what, example, **options)

    def view(self, what: str, example: int = 0, pair: str | None = None) -> xr.DataArray:
        """The two-dimensional array behind a figure."""
        if what not in self.data or not 0 <= example < len(self.tokens):
            raise ResultError(
                f"There is no view {what!r} of example {example}; expected one of "
                f"{', '.join(map(repr, self.data))}, and example 0 to {len(self.tokens) - 1}."
            )
        if what == "spread":
            return self.data["spread"].mean("example")
        found = self.data[what].isel(example=example)
        if what == "scores":
            known = [str(name) for name in found["pair"].to_numpy()]
            if not known or (pair is not None and pair not in known):
                raise ResultError(
                    f"The scores of {pair!r} were not kept; kept are {known}. Name pairs with "
                    "decompose_attention(..., pairs=[(query, key), ...])."
                )
            found = found.sel(pair=pair or known[0])
        length = len(self.tokens[example])
        places = [dim for dim in found.dims if str(dim).endswith("pos")]
        return found.isel({dim: slice(0, length) for dim in places})

    def __repr__(self) -> str:
        head = Part("head", *self.head)
        return f"AttentionParts({head} of {self.model}; spread of scores)\n{self.top(5)!r}"
