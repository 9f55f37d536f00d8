"""All parts of a whole in one map: the cells and what is beside them, part by part."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from nnattr.arguments import checked
from nnattr.errors import ResultError
from nnattr.graph import Part, parse
from nnattr.plots.bars import bars
from nnattr.plots.heat import heatmap
from nnattr.results import Scores


@checked
def parts(scores: Scores, *, title: str | None = None, limit: float | None = None) -> go.Figure:
    """A row per part (embedding, heads, MLPs, biases, as they come in the model), a column a token.

    The rows of a column add up to the whole, so nothing is hidden: for `next_token_attribution`
    the logit of the token that comes next. Without positions there is a bar per part. Arguments are
    those of `nnattr.plots.plot`.

    Raises:
        ResultError: the scores are not the parts of a whole.
    """
    whole = _listed(scores)
    draw = heatmap if "pos" in whole.cell_dims else bars
    return draw(whole, title=title, limit=limit)


def _listed(scores: Scores) -> Scores:
    """The same scores with every part as a component."""
    if "component" in scores.raw.dims:
        return scores
    if scores.rest is None:
        raise ResultError(
            f"{scores.provenance.method} gives effects, not parts that add up to a whole; use "
            "scores.plot()."
        )
    mean = scores.mean()
    assert mean.rest is not None
    unit = next(dim for dim in mean.cell_dims if dim in ("head", "neuron"))
    cells = mean.raw.stack(component=("layer", unit))
    names = [
        Part(str(unit), layer, number).label for layer, number in cells["component"].to_numpy()
    ]
    cells = cells.drop_vars(["component", "layer", unit]).assign_coords(component=names)
    both = xr.concat([mean.rest, cells], "component").transpose("component", ...)
    labels = [str(name) for name in both["component"].to_numpy()]
    order = sorted(range(len(labels)), key=lambda i: parse(labels[i]))
    return mean.with_arrays(raw=both.isel(component=np.array(order)), error=None, rest=None)
