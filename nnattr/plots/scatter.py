"""The agreement scatter: an estimate against the exact scores, one point per cell."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from nnattr.arguments import Positive, checked
from nnattr.errors import ResultError
from nnattr.plots import look, words
from nnattr.results import Agreement, Scores, agreement, measured

SIDE = 440  # pixels of the square plot
NEAR = 0.035  # labels closer in height than this share of the axis would cover each other


@checked
def agreement_scatter(
    exact: Scores, estimate: Scores, *, k: Positive = 10, title: str | None = None
) -> go.Figure:
    """Estimated against exact scores, with the line on which they are equal.

    Args:
        exact: what the estimate stands for, on the horizontal axis.
        estimate: the same cells by another method.
        k: how many of the strongest cells (by either method) to label, and to compare in the
            heading's overlap.
        title: the first line above the figure; None writes one, ``""`` leaves the heading out.

    Returns:
        a plotly figure; the heading gives Pearson's and Spearman's correlations.

    Raises:
        ResultError: the two have different cells or units, or fewer than two cells.
    """
    return agreement_figure(agreement(exact, estimate, k), title=title)


@checked
def agreement_figure(found: Agreement, *, title: str | None = None) -> go.Figure:
    """The same for an agreement that was measured; `Agreement.plot` returns this.

    Raises:
        ResultError: the two are in different units.
    """
    one, other = found.exact, found.estimate
    if words.unit(one) != words.unit(other):
        raise ResultError(
            f"The first scores are a {words.unit(one)} and the second a {words.unit(other)}; "
            "compare scores of one unit."
        )
    x, y = (scores.values.to_numpy().ravel() for scores in (one, other))
    low, high = _span(np.concatenate([x, y]))
    names = (words.method_name(one), words.method_name(other))
    head = f"{names[1]} against {names[0].lower()}" if title is None else title
    asked = other.provenance.asked if other.provenance.asked != one.provenance.asked else ""
    subtitle = " · ".join(filter(None, [str(found), words.subtitle(one), asked]))
    figure = go.Figure(_points(one, other))
    figure.update_layout(
        look.layout(SIDE + 110, SIDE + 70, head, subtitle, caution=words.caution(found))
    )
    line = {"color": look.SOFT, "width": 1, "dash": "dot"}
    figure.add_shape(type="line", x0=low, y0=low, x1=high, y1=high, line=line, layer="below")
    for label in _labels(x, y, words.cell_names(one, one.cell_dims).ravel(), found.k, high - low):
        figure.add_annotation(label)
    frame = {"range": [low, high], "gridcolor": "#eaeef2", "zerolinecolor": look.GREY}
    frame |= {"automargin": True, "zerolinewidth": 1}
    return figure.update_layout(
        xaxis={**frame, "title": _axis_title(names[0], one)},
        yaxis={**frame, "title": _axis_title(names[1], other)},
    )


def _axis_title(name: str, scores: Scores) -> dict[str, object]:
    unit = f"<span style='font-size:11px;color:{look.SOFT}'>{words.unit(scores)}</span>"
    return {"text": f"{name}<br>{unit}", "standoff": 8}


def _span(values: np.ndarray) -> tuple[float, float]:
    """The range of both axes: all finite values and zero, with some air."""
    finite = values[np.isfinite(values)]
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    air = 0.08 * (high - low) or 1.0
    return low - air, high + air


def _points(one: Scores, other: Scores) -> go.Scatter:
    """A point per cell, whose hover text gives both values."""
    values = [scores.values.to_numpy().ravel() for scores in (one, other)]
    spreads = [words.errors(scores).ravel() for scores in (one, other)]
    known = np.isfinite(values[0] + values[1])
    texts = [
        f"<b>{name}</b>"
        + "".join(
            f"<br>{words.method_name(scores)}: {measured(value[i], spread[i])}"
            for scores, value, spread in zip((one, other), values, spreads, strict=True)
        )
        for i, name in enumerate(words.cell_names(one, one.cell_dims).ravel())
        if known[i]
    ]
    return go.Scatter(
        x=values[0][known],
        y=values[1][known],
        mode="markers",
        marker={"size": 8, "color": look.BLUE, "opacity": 0.65},
        hovertext=texts,
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _labels(
    x: np.ndarray, y: np.ndarray, names: np.ndarray, k: int, span: float
) -> list[dict[str, object]]:
    """Labels of the strongest cells, on alternate sides, without those that would collide."""
    strength = np.nan_to_num(np.maximum(np.abs(x), np.abs(y)))
    placed: list[tuple[float, float]] = []
    labels: list[dict[str, object]] = []
    for i in np.argsort(-strength, kind="stable")[:k]:
        crowded = [
            abs(y[i] - v) < NEAR * span and abs(x[i] - u) < 4 * NEAR * span for u, v in placed
        ]
        if any(crowded) or not np.isfinite(x[i] + y[i]):
            continue
        left = len(placed) % 2 == 0
        placed.append((float(x[i]), float(y[i])))
        side = {"xanchor": "right", "xshift": -7} if left else {"xanchor": "left", "xshift": 7}
        font = {"size": 11, "color": look.INK}
        labels.append(
            {"x": x[i], "y": y[i], "text": names[i], "showarrow": False, "font": font, **side}
        )
    return labels
