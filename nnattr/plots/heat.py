"""Heat maps: two dimensions of cells, or three as rows (two of them) by columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import get_colorscale

from nnattr.arguments import checked
from nnattr.errors import ResultError
from nnattr.plots import look, words
from nnattr.results import Scores

#: ColorBrewer's red-white-blue, as the field uses it: blue is positive.
DIVERGING = get_colorscale("RdBu")
HIGHEST = 960  # pixels of a map


@dataclass(frozen=True)
class Grid:
    """One map to draw: numbers and texts [row, column], and the axes' labels and titles."""

    values: np.ndarray
    texts: np.ndarray
    rows: list[str]
    columns: list[str]
    row_title: str
    column_title: str

    @property
    def cell(self) -> tuple[float, float]:
        """Width and height of a cell in pixels: square unless tokens stand along one axis."""
        tall = float(np.clip(480 / len(self.rows), min(16, HIGHEST / len(self.rows)), 56))
        wide = float(np.clip(640 / len(self.columns), 4, 56))
        if self.rows == self.columns:
            return min(wide, tall), min(wide, tall)
        return (wide if look.are_long(self.columns) else min(wide, tall)), tall

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the map in pixels."""
        wide, tall = self.cell
        return min(wide * len(self.columns), look.WIDEST), max(tall * len(self.rows), 200)

    def axes(self) -> dict[str, Any]:
        """Both axes; row 0 is at the top."""
        (wide, tall), long = self.size, look.are_long(self.columns)
        rooms = int(wide / (15 if long else 22)), int(tall / 13)
        if self.rows == self.columns:  # the same ticks on both sides
            rooms = min(rooms), min(rooms)
        across = look.axis(self.columns, self.column_title, rooms[0])
        if long:
            across["tickangle"] = -90
        down = look.axis(self.rows, self.row_title, rooms[1])
        return {"xaxis": across, "yaxis": {**down, "autorange": "reversed"}}

    def trace(
        self, limit: float, unit: str, visible: bool = True, signed: bool = True
    ) -> go.Heatmap:
        """The map itself, on a scale from ``-limit``, or 0 if nothing is negative, to ``limit``."""
        gap = 1 if min(self.cell) >= 14 else 0
        return look.heat(
            self.values,
            (-limit if signed else 0, limit),
            DIVERGING if signed else "Blues",
            unit=unit,
            bar=min(self.size[1] + 20, 360),
            text=self.texts,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            zmid=0 if signed else None,
            xgap=gap,
            ygap=gap,
            visible=visible,
        )


@checked
def heatmap(scores: Scores, *, title: str | None = None, limit: float | None = None) -> go.Figure:
    """A heat map of two dimensions: layer by head, layer by position, and the like.

    Arguments are those of `nnattr.plots.plot`.

    Raises:
        ResultError: the scores do not have exactly two dimensions longer than 1.
    """
    mean, dims = scores.mean(), words.open_dims(scores)
    if len(dims) != 2:
        raise ResultError(
            f"A heat map has two dimensions, and these scores have {dict(scores.raw.sizes)}; "
            "choose with scores.sel(...), or let scores.plot() choose the figure."
        )
    grid = _grid(mean, dims[:1], dims[1])
    end = look.limit_of(grid.values, limit)
    return framed(mean, grid, [grid.trace(end, words.unit(mean))], title)


@checked
def strongest(
    scores: Scores, *, rows: int = 20, title: str | None = None, limit: float | None = None
) -> go.Figure:
    """A heat map of three dimensions: the strongest (layer, head) rows over positions.

    A menu shows the heads of one layer instead. The other arguments are those of
    `nnattr.plots.plot`.

    Args:
        scores: with three dimensions longer than 1.
        rows: how many rows to show at first, strongest anywhere first.
        title: see `nnattr.plots.plot`.
        limit: see `nnattr.plots.plot`.

    Raises:
        ResultError: the scores do not have exactly three dimensions longer than 1.
    """
    mean, dims = scores.mean(), words.open_dims(scores)
    if len(dims) != 3:
        raise ResultError(
            f"This figure has three dimensions, and these scores have {dict(scores.raw.sizes)}."
        )
    whole = _grid(mean, dims[:2], dims[2])
    peaks = np.nan_to_num(np.abs(whole.values)).max(axis=1)
    order = np.argsort(-peaks, kind="stable")[:rows]
    views = {"strongest rows": order} | {
        f"{dims[0]} {label}": np.arange(len(whole.rows)).reshape(mean.raw.sizes[dims[0]], -1)[i]
        for i, label in enumerate(words.tick_labels(mean, dims[0]))
    }
    grids = {name: _rows(whole, chosen) for name, chosen in views.items()}
    end, what = look.limit_of(whole.values, limit), words.unit(mean)
    traces = [grid.trace(end, what, visible=not i) for i, grid in enumerate(grids.values())]
    figure = framed(mean, grids["strongest rows"], traces, title, extra=40)
    return figure.update_layout(updatemenus=[_menu(grids)])


def _grid(mean: Scores, row_dims: tuple[str, ...], column_dim: str) -> Grid:
    """The open dimensions as a table, with the first ones as rows."""
    keep = tuple(slice(None) if d in (*row_dims, column_dim) else 0 for d in mean.cell_dims)
    values, texts = mean.values.to_numpy()[keep], words.hover_texts(mean)[keep]
    if len(row_dims) == 1:
        rows = words.tick_labels(mean, row_dims[0])
    else:
        rows = list(words.cell_names(mean, row_dims).ravel())
    return Grid(
        values.reshape(len(rows), -1),
        texts.reshape(len(rows), -1),
        rows,
        words.tick_labels(mean, column_dim),
        " and ".join(words.axis(dim).lower() for dim in row_dims).capitalize(),
        words.axis_title(mean, column_dim),
    )


def _rows(grid: Grid, chosen: np.ndarray) -> Grid:
    """The grid with the chosen rows only, in that order."""
    labels = [grid.rows[i] for i in chosen]
    return replace(grid, values=grid.values[chosen], texts=grid.texts[chosen], rows=labels)


def _menu(grids: Mapping[str, Grid]) -> dict[str, Any]:
    """The menu that shows one grid's trace with its own row labels."""
    buttons = []
    for i, (name, grid) in enumerate(grids.items()):
        down = grid.axes()["yaxis"]
        ticks = {f"yaxis.{key}": down[key] for key in ("tickvals", "ticktext", "autorange")}
        visible = [i == j for j in range(len(grids))]
        buttons.append({"label": name, "method": "update", "args": [{"visible": visible}, ticks]})
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 8}}
    return {"buttons": buttons, "bgcolor": "white", "bordercolor": look.LINE, **place}


def framed(
    mean: Scores,
    grid: Grid,
    traces: Sequence[go.Heatmap],
    title: str | None,
    *,
    also: str = "",
    extra: int = 0,
) -> go.Figure:
    """The traces with the axes of ``grid`` and a heading; ``also`` ends its second line."""
    wide, tall = grid.size
    head = words.title(mean) if title is None else title
    room = 60 + look.depth(grid.columns)
    said = " · ".join(filter(None, (words.subtitle(mean), also)))
    figure = go.Figure(traces)
    made = look.layout(wide + 170, tall + room, head, said, extra, words.caution(mean))
    figure.update_layout(made)
    return figure.update_layout(plot_bgcolor=look.EMPTY, **grid.axes())
