"""Kinds of heads as heat maps, and the loss on repeated tokens as a line."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from nnattr.arguments import checked
from nnattr.graph import Part
from nnattr.plots import look, words
from nnattr.results import HeadScores, measured
from nnattr.results.cells import counted

WRITTEN = 200  # cells up to which each shows its number
GAP = 26  # pixels between two maps


@checked
def kinds_figure(found: HeadScores, kind: str | None = None, title: str | None = None) -> go.Figure:
    """Layer by head for one kind or all; heads over the threshold have a frame.

    Arguments are those of `HeadScores.plot`, which returns this.

    Raises:
        ResultError: there is no such kind.
    """
    from plotly.subplots import make_subplots

    kinds = found.kinds if kind is None else [kind]
    mean, spread = found.mean(), found.stderr()
    layers, heads = mean.sizes["layer"], mean.sizes["head"]
    cell = float(np.clip(min(400 / layers, 1000 / (heads * len(kinds))), 12, 44))
    wide, tall = cell * heads, max(cell * layers, 120.0)
    whole = wide * len(kinds) + GAP * (len(kinds) - 1)
    figure = make_subplots(
        1,
        len(kinds),
        subplot_titles=[f"{one} (≥ {found.limit(one):g})" for one in kinds],
        horizontal_spacing=GAP / whole if len(kinds) > 1 else 0,
    )
    for column, one in enumerate(kinds, 1):
        values = mean.sel(kind=one).to_numpy()
        trace = _trace(values, spread.sel(kind=one).to_numpy(), one, cell, column == 1)
        figure.add_trace(trace, row=1, col=column)
        for layer, head in np.argwhere(values >= found.limit(one)):
            frame = {"x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
            line = {"color": look.RED, "width": 2}
            figure.add_shape(type="rect", **frame, line=line, row=1, col=column)
        across = look.axis([str(head) for head in range(heads)], "Head", int(wide / 22))
        figure.update_xaxes(across, row=1, col=column)
        down = look.axis([str(layer) for layer in range(layers)], "Layer", int(tall / 13))
        down |= {"autorange": "reversed", "showticklabels": column == 1}
        down["title"] = down["title"] if column == 1 else {"text": ""}
        figure.update_yaxes(down, row=1, col=column)
    figure.update_annotations(font_size=12)
    if title is None:
        title = f"Kinds of heads of {words.safe(found.model)}"
    n = found.scores.sizes["example"]
    about = f"mean over {counted(n, 'example')}; framed: at or over the threshold"
    return figure.update_layout(look.layout(whole + 170, tall + 70, title, about, extra=24))


def _trace(values: np.ndarray, spread: np.ndarray, kind: str, cell: float, bar: bool) -> go.Heatmap:
    hover = np.empty(values.shape, dtype=object)
    for layer, head in np.ndindex(values.shape):
        number = measured(float(values[layer, head]), float(spread[layer, head]))
        hover[layer, head] = f"<b>{Part('head', layer, head)}</b><br>{kind} {number}"
    written = "%{z:.2f}" if cell >= 30 and values.size <= WRITTEN else None
    return look.heat(
        values,
        (0, 1),
        "Blues",
        bar=140,
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        texttemplate=written,
        textfont={"size": 10},
        xgap=1,
        ygap=1,
        showscale=bar,
    )


@checked
def loss_figure(found: HeadScores, title: str | None = None) -> go.Figure:
    """The loss at each position with its standard error, and the means of both copies.

    Raises:
        ResultError: these are not repeated sequences.
    """
    first, second = found.halves()
    loss = found.loss
    assert loss is not None
    assert found.second is not None
    mean = loss.mean("example").to_numpy()
    n = loss.sizes["example"]
    spread = loss.std("example", ddof=1).to_numpy() / n**0.5 if n > 1 else np.zeros_like(mean)
    at = np.arange(len(mean))
    figure = go.Figure()
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(x=at[1:], y=(mean + spread)[1:], **band)
    figure.add_scatter(
        x=at[1:], y=(mean - spread)[1:], fill="tonexty", fillcolor="rgba(33,102,172,.2)", **band
    )
    figure.add_scatter(
        x=at,
        y=mean,
        mode="lines",
        line={"color": look.BLUE, "width": 2},
        hovertemplate="position %{x}<br>loss %{y:.3f}<extra></extra>",
    )
    begins = found.second - 0.5
    for start, stop, value, name, shift in (
        (0, begins, first, "first copy", -64),  # below the line, which goes up and down
        (begins, len(mean) - 1, second, "second copy", 3),
    ):
        dashes = {"color": look.INK, "dash": "dot", "width": 1.5}
        figure.add_shape(type="line", x0=start, x1=stop, y0=value, y1=value, line=dashes)
        note = {"text": f"{name}: {value:.2f}", "showarrow": False, "yanchor": "bottom"}
        note |= {"bgcolor": "rgba(255,255,255,.85)", "yshift": shift}
        figure.add_annotation(x=(start + stop) / 2, y=value, **note)
    if title is None:
        title = f"Loss of {words.safe(found.model)} on repeated random tokens"
    figure.update_layout(look.layout(820, 340, title, f"mean and standard error, n = {n}"))
    grid = {"gridcolor": look.LINE, "zeroline": False, "automargin": True}
    return figure.update_layout(
        xaxis={**grid, "title": {"text": "Position"}, "showgrid": False},
        yaxis={**grid, "title": {"text": "Loss (nats)"}, "rangemode": "tozero"},
    )
