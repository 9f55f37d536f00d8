"""Agreement: how well does an estimate stand for the exact scores?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr

from nnattr.arguments import Positive, checked
from nnattr.errors import ResultError
from nnattr.results.base import Result
from nnattr.results.baselines import spelled
from nnattr.results.cells import cautioned
from nnattr.results.dataset import dataset
from nnattr.results.edge_scores import ENDS, EdgeScores
from nnattr.results.provenance import Provenance
from nnattr.results.scores import Scores

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: What a provenance says of a run; a comparison of results is not one.
COSTS = ("seconds", "jobs", "bytes_sent", "bytes_received", "queue_seconds", "run_seconds")


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Result):
    """How two results on the same cells agree, over the means of their examples.

    Attributes:
        data: ``exact`` and ``estimate``, the means of both by cell, with their standard errors
            ``exact_error`` and ``estimate_error`` where they are known; ``baselines`` as `Scores`
            has them, of the exact one.
        provenance: that of the exact scores; ``arguments`` holds both, by the same names.
        pearson: correlation of the values; dominated by the few strong cells.
        spearman: correlation of the ranks; dominated by the many weak ones.
        overlap: the share of the ``k`` strongest cells (by absolute value) that both name.
        k: how many cells ``overlap`` compares.
    """

    VARIABLES: ClassVar = {"exact": None, "estimate": None, "baselines": ("run", "example")}

    pearson: float
    spearman: float
    overlap: float
    k: int

    @property
    def exact(self) -> Scores:
        """The exact scores, averaged over examples."""
        return self._scores("exact")

    @property
    def estimate(self) -> Scores:
        """The estimate, averaged over examples."""
        return self._scores("estimate")

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per cell, with both scores and their errors."""
        return self.data.drop_vars("baselines").to_dataframe().reset_index()

    @checked
    def plot(self, *, title: str | None = None) -> go.Figure:
        """The estimate against the exact scores, a point per cell.

        Raises:
            ResultError: the two are in different units.
        """
        return self._drawn("plot", title=title)

    def _scores(self, side: Literal["exact", "estimate"]) -> Scores:
        made = Provenance.model_validate(self.provenance.arguments[side])
        values, error = self._variable(side), self._array(f"{side}_error")
        kind = EdgeScores if set(ENDS) <= set(values.dims) else Scores
        return kind.from_arrays(values, self._variable("baselines"), 1.0, made, error=error)

    def __str__(self) -> str:
        return (
            f"Pearson r {self.pearson:.3f}, Spearman rho {self.spearman:.3f}, top-{self.k} overlap "
            f"{self.overlap:.0%}"
        )

    def __repr__(self) -> str:
        p = self.provenance
        both, asked = spelled(self.data["baselines"], p.metric), [f"{p.asked}."] if p.asked else []
        return "\n".join([f"Agreement({self})", both, *asked, *cautioned(p.caution)])


@checked
def agreement(exact: Scores, estimate: Scores, k: Positive = 10) -> Agreement:
    """Compare an estimate with the exact scores, cell by cell, where both have numbers.

    Of cells that one of them was asked for because it is strong, the agreement is not that of all.

    Args:
        exact: what the estimate stands for.
        estimate: the same cells by another method.
        k: among how many of the strongest cells to count those that both name.

    Raises:
        ResultError: the two have different cells, or fewer than two of them.
    """
    means = exact.mean(), estimate.mean()
    one, other = (mean.values for mean in means)
    if one.dims != other.dims or one.shape != other.shape:
        raise ResultError(
            f"The results have different cells: {dict(one.sizes)} against {dict(other.sizes)}; "
            "compare two methods on the same model, task, site and positions."
        )
    both = np.isfinite(one.to_numpy()) & np.isfinite(other.to_numpy())
    x, y = (pd.Series(values.to_numpy()[both]) for values in (one, other))
    if len(x) < 2:
        raise ResultError(f"{len(x)} cells are too few to correlate; at least 2 are needed.")
    k = min(k, len(x))
    strongest = [set(np.argsort(-np.abs(values), kind="stable")[:k]) for values in (x, y)]
    shared = len(strongest[0] & strongest[1]) / k
    pearson, spearman = _correlation(x, y), _correlation(x.rank(), y.rank())
    return Agreement(_data(*means), _made(exact, estimate, k), pearson, spearman, shared, k)


def _data(exact: Scores, estimate: Scores) -> xr.Dataset:
    """Both averages on the coordinates of the exact one."""
    cells = exact.values
    arrays: dict[str, Any] = {"baselines": exact.baselines}
    for name, mean in (("exact", exact), ("estimate", estimate)):
        arrays[name] = cells.copy(data=mean.values.to_numpy())
        if mean.error is not None:
            arrays[f"{name}_error"] = cells.copy(data=mean.stderr().to_numpy())
    return dataset(arrays)


def _made(exact: Scores, estimate: Scores, k: int) -> Provenance:
    told = {
        name: scores.provenance.model_dump(mode="json", exclude={"examples"})
        for name, scores in (("exact", exact), ("estimate", estimate))
    }
    update = {"method": "agreement", "arguments": {"k": k, **told}, **dict.fromkeys(COSTS, 0)}
    for name in ("caution", "asked"):
        said = (getattr(scores.provenance, name) for scores in (exact, estimate))
        update[name] = next(filter(None, said), "")
    return exact.provenance.model_copy(update=update)


def _correlation(x: pd.Series, y: pd.Series) -> float:
    return float(xr.corr(xr.DataArray(x.to_numpy()), xr.DataArray(y.to_numpy())))
