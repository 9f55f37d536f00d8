"""A head's attention scores, by where its queries and keys come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import xarray as xr

from nnattr.arguments import Natural, Positive, checked
from nnattr.errors import ResultError
from nnattr.graph import Part
from nnattr.results.base import Result
from nnattr.results.cells import Ranking, ranking

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

View = Literal["spread", "query", "key", "scores", "total", "pattern"]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionParts(Result):
    """What a head's queries, keys and scores are sums of; made by `nnattr.decompose_attention`.

    Positions count from each prompt's first token; there is NaN where a shorter prompt has none,
    and in scores where a key comes after its query.

    Attributes:
        data: variables ``query`` and ``key`` (example, component, pos), the lengths of the parts;
            ``spread`` (example, query_component, key_component), the standard deviation of a pair's
            scores over the entries that are seen; ``scores`` (example, pair, query_pos, key_pos) of
            some pairs; ``total`` and ``pattern`` (example, query_pos, key_pos), the head's own
            scores (before a soft-cap, if the model has one) and attention.
        provenance: how this was made.
        tokens: each prompt's tokens.
        head: (layer, head).
    """

    VARIABLES: ClassVar = {
        "query": ("example", "component", "pos"),
        "key": ("example", "component", "pos"),
        "spread": ("example", "query_component", "key_component"),
        "scores": ("example", "pair", "query_pos", "key_pos"),
        "total": ("example", "query_pos", "key_pos"),
        "pattern": ("example", "query_pos", "key_pos"),
    }

    tokens: tuple[tuple[str, ...], ...]
    head: tuple[int, int]

    @property
    def components(self) -> list[str]:
        """The parts: embeddings, heads and MLPs of earlier layers, biases."""
        return [str(name) for name in self.data["component"].to_numpy()]

    @checked
    def top(self, k: Positive = 10) -> Ranking:
        """The ``k`` pairs (query component, key component) whose scores vary most."""
        return ranking(self.data["spread"].mean("example"), k=k, by="value")

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per prompt and pair of components, with the ``spread`` of its scores."""
        return self.data["spread"].to_dataframe().reset_index()

    @checked
    def plot(
        self,
        what: View = "spread",
        *,
        example: Natural = 0,
        pair: str | None = None,
        **options: Any,
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
        return self._drawn("plot", self.view(what, example, pair), what, example, **options)

    @checked
    def view(self, what: str, example: Natural = 0, pair: str | None = None) -> xr.DataArray:
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
