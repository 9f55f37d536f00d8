"""Where heads look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import xarray as xr

from nnattr.arguments import Natural, Page, checked
from nnattr.errors import ResultError
from nnattr.results.base import Result
from nnattr.results.cells import counted

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Patterns(Result):
    """Attention patterns of chosen heads; made by `nnattr.attention_patterns`.

    Attributes:
        data: ``values`` (see below).
        provenance: how this was made.
        tokens: each prompt's tokens as text.
        prompts: the prompts.
        weighted: whether the values are weighted by the length of what is written from each key.
    """

    VARIABLES: ClassVar = {"values": ("example", "head", "query_pos", "key_pos")}

    tokens: tuple[tuple[str, ...], ...]
    prompts: tuple[str, ...]
    weighted: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = max(map(len, self.tokens), default=0)
        n = len(self.prompts)
        expected = (n, self.values.sizes["head"], longest, longest)
        if self.values.shape != expected or n != len(self.tokens):
            raise ResultError(
                f"Patterns of {n} prompts of at most {longest} tokens are {self.values.dims} = "
                f"{expected}, not {self.values.shape}."
            )

    @property
    def values(self) -> xr.DataArray:
        """The attention, dims ``example``, ``head`` (``"L9H6"``), ``query_pos`` and ``key_pos``.

        Positions are counted from each prompt's first token; NaN behind the last token of a shorter
        prompt. Coordinates of ``head``: ``layer`` and ``number``.
        """
        return self._variable("values")

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The heads as (layer, head), in the order in which they were asked for."""
        layers, numbers = (self.values[name].to_numpy().tolist() for name in ("layer", "number"))
        return list(zip(layers, numbers, strict=True))

    @checked
    def of(self, layer: int, head: int, example: Natural = 0) -> xr.DataArray:
        """One head's pattern on one prompt [query_pos, key_pos], without what it does not have.

        Raises:
            ResultError: there is no such head or prompt here.
        """
        length = len(self.tokens[self._example(example)])
        if (layer, head) not in self.heads:
            raise ResultError(
                f"There is no head ({layer}, {head}) here; there are {self.heads[:8]}"
                f"{' and more' if len(self.heads) > 8 else ''}."
            )
        one = self.values[example, self.heads.index((layer, head)), :length, :length]
        return one.reset_coords(drop=True)

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per prompt, head, query and key at or before it, with both tokens."""
        every = self.values.rename("attention").to_dataframe().reset_index()
        table = every.query("key_pos <= query_pos").dropna(ignore_index=True)
        for side in ("query", "key"):
            at = zip(table["example"], table[f"{side}_pos"], strict=True)
            table[f"{side}_token"] = [self.tokens[example][pos] for example, pos in at]
        return table

    @checked
    def plot(
        self,
        example: Natural = 0,
        *,
        heads: list[tuple[int, int]] | None = None,
        title: str | None = None,
    ) -> go.Figure:
        """One prompt's patterns as heat maps: queries down, keys across.

        Args:
            example: which prompt.
            heads: some of them; by default all.
            title: the first line above the figure; None writes one, ``""`` leaves it out.

        Returns:
            a plotly figure, not shown.

        Raises:
            ResultError: there is no such prompt or head.
        """
        return self._drawn("plot", self._example(example), heads=heads, title=title)

    @checked
    def viewer(self, title: str | None = None) -> Any:
        """A page to explore the patterns with; shows itself at the end of a notebook's cell.

        Args:
            title: what stands above it; None writes one.
        """
        return self._drawn("viewer", title)

    @checked
    def to_html(self, path: Page) -> Path:
        """Write `viewer` as one file that opens anywhere, without a network.

        Raises:
            ResultError: the file cannot be written.
        """
        return self.viewer().save(path)

    def __repr__(self) -> str:
        kind = "value-weighted patterns" if self.weighted else "patterns"
        names = [str(name) for name in self.values["head"].to_numpy()]
        shown = ", ".join(names[:12]) + (f", ... ({len(names)} heads)" if len(names) > 12 else "")
        read = counted(len(self.prompts), "prompt")
        return f"Patterns({kind} of {self.model} on {read}: {shown})"
