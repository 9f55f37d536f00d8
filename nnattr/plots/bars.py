"""Bars: one dimension of cells, with standard errors."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from nnattr.arguments import checked
from nnattr.errors import ResultError
from nnattr.plots import look, words
from nnattr.results import Scores


@checked
def bars(scores: Scores, *, title: str | None = None, limit: float | None = None) -> go.Figure:
    """A bar per layer (or head, or position), with its standard error where that is known.

    Arguments are those of `nnattr.plots.plot`.

    Raises:
        ResultError: the scores do not have exactly one dimension longer than 1.
    """
    mean, dims = scores.mean(), words.open_dims(scores)
    if len(dims) != 1:
        raise ResultError(
            f"Bars have one dimension, and these scores have {dict(scores.raw.sizes)}; choose with "
            "scores.sel(...), or let scores.plot() choose the figure."
        )
    values, spread = mean.values.to_numpy().ravel(), words.errors(mean).ravel()
    labels = words.tick_labels(mean, dims[0])
    width = float(np.clip(44 * len(labels), 360, look.WIDEST - 100))
    figure = go.Figure(_trace(mean, values, spread))
    head = words.title(mean) if title is None else title
    room = 60 + look.depth(labels)
    made = look.layout(
        width + 100, 280 + room, head, words.subtitle(mean), caution=words.caution(mean)
    )
    figure.update_layout(made)
    across = look.axis(labels, words.axis_title(mean, dims[0]), int(width / 17))
    if look.are_long(labels):
        across["tickangle"] = -90
    down = {"title": {"text": words.unit(mean), "standoff": 8}, "gridcolor": look.LINE}
    down |= {"zerolinecolor": look.INK, "zerolinewidth": 1, "automargin": True}
    if limit is not None:
        down["range"] = [-abs(limit), abs(limit)]
    return figure.update_layout(xaxis=across, yaxis=down, bargap=0.25)


def _trace(mean: Scores, values: np.ndarray, spread: np.ndarray) -> go.Bar:
    """Blue bars up, red bars down, as in the heat maps."""
    error = None
    if np.isfinite(spread).any():
        error = {"type": "data", "array": spread, "color": look.SOFT, "thickness": 1.2, "width": 4}
    return go.Bar(
        x=np.arange(len(values)),
        y=values,
        error_y=error,
        marker={"color": [look.RED if value < 0 else look.BLUE for value in values]},
        hovertext=words.hover_texts(mean).ravel(),
        hovertemplate="%{hovertext}<extra></extra>",
    )
