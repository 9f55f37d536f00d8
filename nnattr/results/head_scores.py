"""What kinds of heads a model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import xarray as xr

from nnattr.arguments import Positive, checked
from nnattr.errors import ResultError
from nnattr.results import statistics
from nnattr.results.base import Result
from nnattr.results.cells import Ranking, counted, ranking
from nnattr.results.dataset import dataset
from nnattr.results.provenance import Provenance
from nnattr.tokens import Tokens

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Result):
    """How much each head is of some kind; made by `nnattr.detect_heads` and its neighbours.

    Attributes:
        data: ``scores`` and ``loss`` (see below), ``threshold`` (kind), and the tokens as ``ids``
            and ``mask`` (example, column of the padded batch).
        provenance: how this was made.
        strings: each prompt's tokens as text.
        second: where the second copy of a repeated sequence begins, or None for other prompts.
    """

    VARIABLES: ClassVar = {
        "scores": ("example", "kind", "layer", "head"),
        "threshold": ("kind",),
        "ids": ("example", "column"),
        "mask": ("example", "column"),
    }

    strings: tuple[tuple[str, ...], ...]
    second: int | None = None

    @classmethod
    def from_arrays(
        cls,
        scores: xr.DataArray,
        thresholds: Mapping[str, float],
        tokens: Tokens,
        provenance: Provenance,
        *,
        loss: xr.DataArray | None = None,
        second: int | None = None,
    ) -> HeadScores:
        """Scores of heads from their arrays and the tokens that the model read."""
        kinds = scores["kind"].to_numpy().tolist()
        limits = xr.DataArray([float(thresholds[kind]) for kind in kinds], {"kind": kinds})
        arrays = {"scores": scores, "threshold": limits, "loss": loss}
        for name, value in (("ids", tokens.ids), ("mask", tokens.mask)):
            arrays[name] = xr.DataArray(value.numpy(), dims=("example", "column"))
        strings = tuple(map(tuple, tokens.strings))
        return cls(dataset(arrays), provenance, strings, second)

    @property
    def scores(self) -> xr.DataArray:
        """From 0 to 1, dims ``example``, ``kind``, ``layer``, ``head``.

        NaN where an example has nothing for a kind to show on.
        """
        return self._variable("scores")

    @property
    def loss(self) -> xr.DataArray | None:
        """Minus the log probability of the token at ``pos``, given those before it, or None.

        Dims ``example``, ``pos``; NaN at the first, which nothing predicts. None if not asked for.
        """
        return self._array("loss")

    @property
    def thresholds(self) -> dict[str, float]:
        """For each kind the score from which on a head counts as one of it."""
        return dict(zip(self.kinds, self.data["threshold"].to_numpy().tolist(), strict=True))

    @property
    def tokens(self) -> Tokens:
        """What the model read; `nnattr.attention_patterns` and its kin take it as prompts."""
        ids, mask = (torch.from_numpy(self.data[name].to_numpy()) for name in ("ids", "mask"))
        return Tokens(ids, mask, self.strings)

    @property
    def kinds(self) -> list[str]:
        """The kinds, in order."""
        return [str(kind) for kind in self.scores["kind"].to_numpy()]

    @checked
    def mean(self) -> xr.DataArray:
        """The scores [kind, layer, head], averaged over the examples that show the kind."""
        return self.scores.mean("example")

    @checked
    def stderr(self) -> xr.DataArray:
        """Standard error of `mean` over the examples; NaN for a single one."""
        return statistics.standard_error(self.scores)

    @checked
    def heads(self, kind: str) -> Ranking:
        """The heads that reach the kind's threshold, strongest first; ``.indices`` has the pairs.

        Raises:
            ResultError: there is no such kind.
        """
        return Ranking(cell for cell in self.top(kind, None) if cell.value >= self.limit(kind))

    @checked
    def limit(self, kind: str) -> float:
        """The threshold of a kind.

        Raises:
            ResultError: there is no such kind.
        """
        if kind not in self.kinds:
            raise ResultError(f"There is no kind {kind!r}; expected one of {self.kinds}.")
        return self.thresholds[kind]

    @checked
    def top(self, kind: str, k: Positive | None = 5) -> Ranking:
        """The ``k`` strongest heads of a kind (None: all), whatever the threshold.

        Raises:
            ResultError: there is no such kind.
        """
        self.limit(kind)
        mean, spread = (one.sel(kind=kind, drop=True) for one in (self.mean(), self.stderr()))
        return ranking(mean, spread, k, "value")

    @checked
    def halves(self) -> tuple[float, float]:
        """The mean loss in the first and in the second copy of a repeated sequence.

        Raises:
            ResultError: these are not repeated sequences, or the loss was not asked for.
        """
        if self.loss is None or self.second is None:
            raise ResultError("Only detect_heads on repeated tokens knows a first and second half.")
        first, second = self.loss[:, : self.second], self.loss[:, self.second :]
        return float(first.mean()), float(second.mean())

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per kind and head, with its standard error and whether it reaches its limit."""
        mean = self.mean()
        limits = xr.DataArray([self.thresholds[kind] for kind in self.kinds], dims="kind")
        data = {"score": mean, "stderr": self.stderr(), "found": mean >= limits}
        return xr.Dataset(data).to_dataframe().reset_index()

    @checked
    def plot(self, kind: str | None = None, *, title: str | None = None) -> go.Figure:
        """Heat maps of the mean scores, layer by head; one kind or all.

        Args:
            kind: one of ``kinds``; None shows all beside each other.
            title: the first line above the figure; None writes one, ``""`` leaves it out.

        Returns:
            a plotly figure, not shown.

        Raises:
            ResultError: there is no such kind.
        """
        return self._drawn("plot", kind, title)

    @checked
    def plot_loss(self, *, title: str | None = None) -> go.Figure:
        """The loss at every position, averaged over examples, and of both halves.

        Raises:
            ResultError: these are not repeated sequences, or the loss was not asked for.
        """
        return self._drawn("loss", title)

    def __repr__(self) -> str:
        read = counted(self.scores.sizes["example"], "example")
        lines = [f"HeadScores({self.model}, {read})"]
        for kind in self.kinds:
            shown = " ".join(f"{cell.label} {cell.value:.2f}" for cell in self.heads(kind)[:6])
            lines.append(f"{kind:>10} (>= {self.thresholds[kind]:.2f})  {shown or 'none'}")
        if self.loss is not None and self.second is not None:
            first, second = self.halves()
            lines.append(f"      loss  {first:.3f} in the first copy, {second:.3f} in the second")
        return "\n".join(lines)
