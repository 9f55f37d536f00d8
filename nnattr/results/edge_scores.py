"""`EdgeScores`, what a method says of edges: from what one part writes to what another reads."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any, ClassVar

import xarray as xr

from nnattr.arguments import checked
from nnattr.errors import ResultError
from nnattr.graph import is_one, parse
from nnattr.results.baselines import spelled
from nnattr.results.cells import WIDTH, counted
from nnattr.results.scores import Scores

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

#: What stayed as it is in the run patched into, by a method's argument ``between``, in words.
BETWEEN = {
    "frozen": "all between sender and receiver is frozen",
    "mlps": "heads between are frozen, MLPs and norms are not",
}
ENDS = ("sender", "receiver")


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(Scores):
    """Change of the metric for every example and edge, a matrix of senders by receivers.

    Everything that `Scores` can be asked, edges can: ``mean``, ``top``, ``bootstrap_ci``, ``sel``,
    ``save``. Effects of single edges do not add up: two edges may stand in for each other.

    Attributes:
        data: the variables of `Scores` with the cells ``sender``, ``receiver`` (parts by their
            names, ``"L3H2"`` and ``"L5H1.q"``) and, with ``positions="each"``, ``pos``; and
            ``testable``.
        provenance: how this was made; its argument ``between`` says what else was frozen.
        scale: what ``values`` are divided by: the runs' mean gap when normalised, else 1.
    """

    NOUN: ClassVar = "edge"
    OTHERS: ClassVar = ("error", "testable")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(ENDS) <= set(self.cell_dims):
            raise ResultError(
                f"Edges have the dimensions {ENDS}, and these scores have {self.cell_dims}."
            )

    @property
    def raw(self) -> xr.DataArray:
        """The change in the metric's own units; NaN where there is no edge or none was asked for.

        Dimensions ``example`` (unless reduced), ``sender``, ``receiver`` and, for every position
        by itself, ``pos``. An edge that could not be tested has 0 here.
        """
        return self._variable("raw")

    @property
    def values(self) -> xr.DataArray:
        """The scores as asked for, normalised or raw; NaN also for what could not be tested."""
        found = super().values
        return found if self.testable is None else found.where(self.testable)

    @property
    def testable(self) -> xr.DataArray | None:
        """Whether these prompts can tell anything of an edge, or None where all can.

        Where both runs of every pair agree in all that the sender writes there (as at positions
        before the first token in which they differ), patching changes nothing, whether or not the
        model uses the edge. Such a zero says nothing, and is not among the ``values``.
        """
        return self._array("testable")

    @property
    def between(self) -> str:
        """What was done with all that lies between sender and receiver: ``"frozen"``, ``"mlps"``.

        The two are different questions with different answers.
        """
        return str(self.provenance.arguments.get("between", "frozen"))

    @property
    def n_untestable(self) -> int:
        """How many of the edges these prompts can say nothing of."""
        return self.n_cells - int(self.mean().values.notnull().sum())

    def sel(self, **indexers: Any) -> EdgeScores:
        """A part of the scores by label; senders and receivers by any way of writing them.

        ``edges.sel(receiver="logits")``, ``edges.sel(sender=[(3, 2), "m3"])``. See `Scores.sel`.

        Raises:
            ResultError: there is no such label, or nothing is left.
            ArchError: a sender or receiver is not a part.
        """
        named = {
            dim: [str(parse(one)) for one in ([given] if is_one(given) else given)]
            for dim, given in indexers.items()
            if dim in ENDS and not isinstance(given, slice)
        }
        return super().sel(**indexers | named)

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per example and edge that was measured: ``value``, ``raw``, ``testable``."""
        table = super().to_dataframe()
        if self.testable is not None:
            each = self.testable.broadcast_like(self.raw).transpose(*self.raw.dims)
            table["testable"] = each.to_numpy().ravel()
        return table.dropna(subset="raw", ignore_index=True)

    @checked
    def plot(
        self,
        *,
        sender: Any = None,
        receiver: Any = None,
        title: str | None = None,
        limit: float | None = None,
    ) -> go.Figure:
        """Senders by receivers; of one sender or receiver its other ends, layer by head.

        Args:
            sender: show the edges from this part alone: where what it writes goes.
            receiver: show the edges into this part alone: what it reads.
            title: the first line above the figure; None writes one, ``""`` leaves it out.
            limit: the value at which the colours end; None means the strongest edge.

        Returns:
            a plotly figure, not shown. Of a large matrix it has the strongest edges with all others
            between the same parts, and says so; with positions the strongest edges over these.
        """
        return self._drawn("plot", sender=sender, receiver=receiver, title=title, limit=limit)

    def __repr__(self) -> str:
        p = self.provenance
        sizes = ", ".join(f"{dim} {size}" for dim, size in self.raw.sizes.items())
        head = f"EdgeScores({p.method} of {p.metric})"
        size = wrap(f"{p.subject}, {p.task}: {sizes}", WIDTH)
        lines = [head, *size, spelled(self.baselines, p.metric), *wrap(extent(self), WIDTH)]
        return "\n".join([*lines, repr(self.top(5))])


def extent(scores: EdgeScores) -> str:
    """How many edges, what lies between their ends, and how many could not be tested."""
    unknown = scores.n_untestable
    each = " at single positions" if "pos" in scores.raw.dims else ""
    said = f"{counted(scores.n_cells, scores.NOUN)}{each}; "
    said += BETWEEN.get(scores.between, scores.between)
    return said + (f"; {unknown} not testable with this counterfactual" if unknown else "")
