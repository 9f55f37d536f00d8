"""What kinds of heads a model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from nnattr.errors import ResultError
from nnattr.results import files, statistics
from nnattr.results.cells import Cell, Ranking, cell_label
from nnattr.tokens import Tokens

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class HeadScores:
    """How much each head is of some kind; made by `nnattr.detect_heads` and its neighbours.

    Attributes:
        scores: dims ``example``, ``kind``, ``layer``, ``head``; from 0 to 1, NaN where an example
            has nothing for a kind to show on.
        thresholds: for each kind the score from which on a head counts as one of it.
        tokens: what the model read; `nnattr.attention_patterns` and its neighbours take it as
            prompts.
        model: the model's name.
        loss: dims ``example``, ``pos``: minus the log probability of the token at ``pos``, given
            those before it (NaN at the first, which nothing predicts); None if not asked for.
        second: where the second copy of a repeated sequence begins, or None for other prompts.
    """

    scores: xr.DataArray
    thresholds: Mapping[str, float]
    tokens: Tokens
    model: str
    loss: xr.DataArray | None = None
    second: int | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds, in order."""
        return [str(kind) for kind in self.scores["kind"].to_numpy()]

    def mean(self) -> xr.DataArray:
        """The scores [kind, layer, head], averaged over the examples that show the kind."""
        return self.scores.mean("example")

    def stderr(self) -> xr.DataArray:
        """Standard error of `mean` over the examples; NaN for a single one."""
        return statistics.standard_error(self.scores)

    def heads(self, kind: str) -> Ranking:
        """The heads that reach the kind's threshold, strongest first; ``.indices`` has the pairs.

        Raises:
            ResultError: there is no such kind.
        """
        return Ranking(cell for cell in self.top(kind, None) if cell.value >= self.limit(kind))

    def limit(self, kind: str) -> float:
        """The threshold of a kind.

        Raises:
            ResultError: there is no such kind.
        """
        if kind not in self.kinds:
            raise ResultError(f"There is no kind {kind!r}; expected one of {self.kinds}.")
        return self.thresholds[kind]

    def top(self, kind: str, k: int | None = 5) -> Ranking:
        """The ``k`` strongest heads of a kind (None: all), whatever the threshold.

        Raises:
            ResultError: there is no such kind.
        """
        self.limit(kind)
        mean, spread = (one.sel(kind=kind).to_numpy() for one in (self.mean(), self.stderr()))
        order = np.argsort(-np.nan_to_num(mean, nan=-np.inf), axis=None, kind="stable")
        cells = []
        for flat in order[:k]:
            layer, head = (int(i) for i in np.unravel_index(flat, mean.shape))
            if np.isfinite(mean[layer, head]):
                name = cell_label({"layer": layer, "head": head})
                value, error = float(mean[layer, head]), float(spread[layer, head])
                cells.append(Cell((layer, head), name, value, error))
        return Ranking(cells)

    def halves(self) -> tuple[float, float]:
        """The mean loss in the first and in the second copy of a repeated sequence.

        Raises:
            ResultError: these are not repeated sequences, or the loss was not asked for.
        """
        if self.loss is None or self.second is None:
            raise ResultError("Only detect_heads on repeated tokens knows a first and second half.")
        first, second = self.loss[:, : self.second], self.loss[:, self.second :]
        return float(first.mean()), float(second.mean())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per kind and head, with its standard error and whether it reaches its limit."""
        mean = self.mean()
        limits = xr.DataArray([self.thresholds[kind] for kind in self.kinds], dims="kind")
        data = {"score": mean, "stderr": self.stderr(), "found": mean >= limits}
        return xr.Dataset(data).to_dataframe().reset_index()

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
        from nnattr.plots.head_scores import kinds_figure  # as in `Scores.plot`

        return kinds_figure(self, kind, title)

    def plot_loss(self, *, title: str | None = None) -> go.Figure:
        """The loss at every position, averaged over examples, and of both halves.

        Raises:
            ResultError: these are not repeated sequences, or the loss was not asked for.
        """
        from nnattr.plots.head_scores import loss_figure

        return loss_figure(self, title)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file (the folder must exist) and return its path."""
        ids, mask = (xr.DataArray(one.numpy()) for one in (self.tokens.ids, self.tokens.mask))
        arrays = {"scores": self.scores, "ids": ids, "mask": mask}
        known = {**arrays, **({} if self.loss is None else {"loss": self.loss})}
        rest = {
            "thresholds": dict(self.thresholds),
            "strings": self.tokens.strings,
            "model": self.model,
            "second": self.second,
        }
        return files.write(path, known, {"head_scores": rest})

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """Read what `save` wrote.

        Raises:
            ResultError: no such file, truncated or other than that, of an unknown schema version,
                or with shapes that contradict its header.
        """
        arrays, header = files.read(path)
        try:
            known = header["head_scores"]
            return cls(
                scores=arrays["scores"],
                thresholds={str(kind): float(at) for kind, at in known["thresholds"].items()},
                tokens=Tokens(
                    torch.from_numpy(arrays["ids"].to_numpy()),
                    torch.from_numpy(arrays["mask"].to_numpy()),
                    tuple(tuple(map(str, row)) for row in known["strings"]),
                ),
                model=str(known["model"]),
                loss=arrays.get("loss"),
                second=known["second"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(f"{path} does not hold scores of heads: {error!r}") from error

    def __repr__(self) -> str:
        n = self.scores.sizes["example"]
        lines = [f"HeadScores({self.model}, {n} examples)"]
        for kind in self.kinds:
            shown = " ".join(f"{cell.label} {cell.value:.2f}" for cell in self.heads(kind)[:6])
            lines.append(f"{kind:>10} (>= {self.thresholds[kind]:.2f})  {shown or 'none'}")
        if self.loss is not None and self.second is not None:
            first, second = self.halves()
            lines.append(f"      loss  {first:.3f} in the first copy, {second:.3f} in the second")
        return "\n".join(lines)
