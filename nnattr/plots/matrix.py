"""Labelled matrices: circuits, attention patterns, composition scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from nnattr.arguments import checked
from nnattr.errors import ResultError
from nnattr.graph import Part
from nnattr.plots import look, words
from nnattr.plots.heat import Grid
from nnattr.results import AttentionParts, Composition

#: Of each view of a decomposed head, its title and what a value is.
ATTENTION = {
    "spread": ("spread of the scores by query and key component", "standard deviation"),
    "query": ("length of its query by component", "length"),
    "key": ("length of its key by component", "length"),
    "scores": ("scores of ", "score"),
    "total": ("attention scores", "score"),
    "pattern": ("attention pattern", "probability"),
}


@checked
def matrix(
    values: xr.DataArray,
    *,
    title: str | None = None,
    subtitle: str = "",
    unit: str = "value",
    limit: float | None = None,
) -> go.Figure:
    """A matrix with names on both sides; colours diverge from zero, or begin there.

    They begin at zero where nothing is negative, as in an attention pattern.

    Args:
        values: two dimensions; their names and coordinates become the axes.
        title: the first line above the figure; None takes the array's name, ``""`` leaves it out.
        subtitle: the second line.
        unit: what a value is.
        limit: the value at which the colours end; None means the largest.

    Returns:
        a plotly figure, not shown.

    Raises:
        ResultError: the array does not have two dimensions.
    """
    grid = grid_of(values, unit)
    end, head = look.limit_of(grid.values, limit), str(values.name or "")
    signed = bool((grid.values < 0).any())
    return _figure(grid, end, unit, head if title is None else title, subtitle, signed)


@checked
def composition_figure(
    found: Composition, *, title: str | None = None, limit: float | None = None
) -> go.Figure:
    """Senders down, receivers across, coloured by the score's distance from random matrices.

    Arguments are those of `matrix`.
    """
    above = found.values - found.baseline
    unit = "score above random"
    grid = grid_of(above, unit)
    scores, names = found.values.to_numpy(), [found.values[dim].to_numpy() for dim in above.dims]
    for i, j in np.ndindex(scores.shape):
        spreads = (scores[i, j] - found.baseline) / found.spread
        grid.texts[i, j] = (
            f"<b>{names[0][i]} → {names[1][j]}</b><br>{found.kind}-composition {scores[i, j]:.4f}"
            f"<br>{spreads:+.0f} spreads from random matrices"
        )
    head = f"{found.kind}-composition scores" if title is None else title
    parts = [words.safe(found.model), f"random matrices {found.baseline:.4f} ± {found.spread:.4f}"]
    if found.fold_norm:
        parts.append("norms folded")
    end = look.limit_of(grid.values, limit)
    return _figure(grid, end, unit, head, " · ".join(parts))


@checked
def attention_figure(
    parts: AttentionParts,
    values: xr.DataArray,
    what: str,
    example: int,
    *,
    title: str | None = None,
    limit: float | None = None,
) -> go.Figure:
    """One view of a decomposed head; see `AttentionParts.plot`."""
    heads, unit = ATTENTION[what]
    tokens = parts.tokens[example]
    grid = grid_of(values, unit)
    labels = {"query_pos": tokens, "key_pos": tokens, "pos": tokens}
    sides = [
        [
            look.numbered(words.token_label(token), place)
            for place, token in enumerate(labels[str(dim)])
        ]
        if dim in labels
        else names
        for dim, names in zip(values.dims, (grid.rows, grid.columns), strict=True)
    ]
    grid = replace(grid, rows=sides[0], columns=sides[1])
    pair = words.safe(str(values["pair"].item())) if what == "scores" else ""
    first = f"{Part('head', *parts.head)}: {heads}{pair}" if title is None else title
    second = words.safe(parts.model) + ("" if what == "spread" else f" · prompt {example}")
    end, signed = look.limit_of(grid.values, limit), bool((grid.values < 0).any())
    return _figure(grid, end, unit, first, second, signed)


def grid_of(values: xr.DataArray, unit: str) -> Grid:
    """A two-dimensional array as a grid to draw."""
    if values.ndim != 2:
        raise ResultError(
            f"A matrix has two dimensions, and these values have {dict(values.sizes)}; choose with "
            "values.sel(...)."
        )
    numbers = values.to_numpy()
    rows, columns = ([words.token_label(str(v)) for v in values[d].to_numpy()] for d in values.dims)
    texts = np.empty(numbers.shape, dtype=object)
    for i, j in np.ndindex(numbers.shape):
        texts[i, j] = f"<b>{rows[i]} → {columns[j]}</b><br>{unit}<br>{numbers[i, j]:+.4g}"
    titles = [words.axis(str(dim)) for dim in values.dims]
    return Grid(numbers, texts, rows, columns, *titles)


def _figure(
    grid: Grid, limit: float, unit: str, title: str, subtitle: str, signed: bool = True
) -> go.Figure:
    wide, tall = grid.size
    figure = go.Figure(grid.trace(limit, unit, signed=signed))
    room = 60 + look.depth(grid.columns)
    figure.update_layout(look.layout(wide + 170, tall + room, title, subtitle))
    axes: dict[str, Any] = grid.axes()
    return figure.update_layout(plot_bgcolor=look.EMPTY, **axes)
