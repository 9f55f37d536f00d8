"""Edges: a matrix of senders by receivers, what one part reads or feeds, edges over positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from nnattr.arguments import checked
from nnattr.graph import Part, parse
from nnattr.plots import look, words
from nnattr.plots.heat import Grid, framed
from nnattr.results import EdgeScores
from nnattr.results.edge_scores import ENDS

#: The most senders and receivers of a matrix, and edges over positions, that can be read.
ROWS, COLUMNS, EDGES = 40, 40, 20
#: The colour of what could not be tested with these prompts.
SAND = "#f3e3bd"
UNTESTED = "not testable with this counterfactual"


@dataclass(frozen=True)
class View:
    """What a figure shows of edges.

    Attributes:
        grid: the map.
        untested: which of its cells could not be tested.
        said: how these edges were chosen among more.
    """

    grid: Grid
    untested: np.ndarray
    said: str = ""

    @property
    def notes(self) -> list[str]:
        """What is to be known of the map: which edges it has, and colours that are no values."""
        empty = (np.isnan(self.grid.values) & ~self.untested).any()
        grey = "grey: no edge, or not asked for" if empty else ""
        sand = f"sand: {UNTESTED}" if self.untested.any() else ""
        return [note for note in (self.said, grey, sand) if note]


@checked
def edges_figure(
    edges: EdgeScores,
    *,
    sender: Any = None,
    receiver: Any = None,
    title: str | None = None,
    limit: float | None = None,
) -> go.Figure:
    """The figure of scores of edges; arguments are those of `EdgeScores.plot`."""
    chosen = {"sender": sender, "receiver": receiver}
    asked = {end: part for end, part in chosen.items() if part is not None}
    mean = (edges.sel(**asked) if asked else edges).mean()
    shown, unit = view(mean), words.unit(mean)
    end = look.limit_of(mean.values.to_numpy(), limit)
    traces = [shown.grid.trace(end, unit)]
    if shown.untested.any():
        cells = np.where(shown.untested, 0.0, np.nan)
        sand = replace(shown.grid, values=cells).trace(end, unit)
        traces.append(sand.update(colorscale=[[0, SAND], [1, SAND]], showscale=False))
    head = _title(mean) if title is None else title
    return framed(mean, shown.grid, traces, head, also=" · ".join(shown.notes))


def view(edges: EdgeScores) -> View:
    """What is shown of edges: by their positions, by what they share, or all in a matrix."""
    mean = edges.mean()
    if mean.raw.sizes.get("pos", 1) > 1:
        return _over_positions(mean)
    return _by_layer(mean) if _shared(mean) else _matrix(mean)


def _shared(mean: EdgeScores) -> str:
    """The end that all edges have in common, or nothing."""
    return next((end for end in reversed(ENDS) if mean.raw.sizes[end] == 1), "")


def _title(mean: EdgeScores) -> str:
    end = _shared(mean)
    shared = {"receiver": "into", "sender": "from"}.get(end, "")
    return f"{words.title(mean)}: edges" + (f" {shared} {mean.raw[end].item()}" if end else "")


def _matrix(mean: EdgeScores) -> View:
    """Senders down, receivers across, both in the order of the forward pass."""
    shown, said = _readable(mean)
    rows, columns = (list(map(str, shown.raw[end].to_numpy())) for end in ENDS)
    values, texts, untested = (one.reshape(len(rows), -1) for one in _cells(shown))
    return View(Grid(values, texts, rows, columns, "Sender", "Receiver"), untested, said)


def _readable(mean: EdgeScores) -> tuple[EdgeScores, str]:
    """The part of a matrix that can be read, and how it was chosen."""
    whole = [mean.raw.sizes[end] for end in ENDS]
    if whole[0] <= ROWS and whole[1] <= COLUMNS:
        return mean, ""
    rows, columns, k = _strongest(np.abs(mean.values.to_numpy()).reshape(whole))
    names = zip(ENDS, (rows, columns), strict=True)
    part = mean.sel(**{end: mean.raw[end].to_numpy()[at].tolist() for end, at in names})
    return part, (
        f"the {k} strongest of {mean.n_cells} edges and all others between the same parts: "
        f"{len(rows)} of {whole[0]} senders, {len(columns)} of {whole[1]} receivers"
    )


def _strongest(sizes: np.ndarray) -> tuple[list[int], list[int], int]:
    """Rows and columns of the largest numbers, as many as can be read, and how many these are."""
    rows: set[int] = set()
    columns: set[int] = set()
    known = np.argsort(-np.nan_to_num(sizes), axis=None, kind="stable")[: (sizes > 0).sum()]
    for k, (i, j) in enumerate(np.stack(np.unravel_index(known, sizes.shape), 1).tolist()):
        if len(rows | {i}) > ROWS or len(columns | {j}) > COLUMNS:
            return sorted(rows), sorted(columns), k
        rows.add(i)
        columns.add(j)
    return sorted(rows), sorted(columns), len(known)


def _by_layer(mean: EdgeScores) -> View:
    """The other ends of edges that share one: a row per layer, heads and beside them the MLP."""
    end = next(one for one in ENDS if one != _shared(mean))
    there = mean.raw.notnull().to_numpy().ravel()
    parts = [parse(str(name)) for name in mean.raw[end].to_numpy()[there]]
    rows, columns = _layers(parts), _columns(parts)
    values = np.full((len(rows), len(columns)), np.nan)
    texts, untested = np.full(values.shape, "", dtype=object), np.zeros(values.shape, dtype=bool)
    for part, *cell in zip(parts, *(one.ravel()[there] for one in _cells(mean)), strict=True):
        at = rows.index(_layer(part)), columns.index(_column(part))
        values[at], texts[at], untested[at] = cell
    title = "Head" if any(part.number is not None for part in parts) else ""
    return View(Grid(values, texts, rows, columns, "Layer", title), untested)


def _layer(part: Part) -> str:
    """The row of a part; what is in no layer has a row of its own."""
    return part.name if part.layer is None else str(part.layer)


def _layers(parts: Sequence[Part]) -> list[str]:
    """All rows, in the order of the forward pass, without a gap."""
    layers = [part.layer for part in parts if part.layer is not None]
    outside = {part.name for part in parts if part.layer is None}
    each = map(str, range(min(layers), max(layers) + 1)) if layers else ()
    return [*(outside & {"input"}), *each, *(outside - {"input"})]


def _column(part: Part) -> str:
    """The column of a part: a head's number, after what it is read by; one for what is no head."""
    return "MLP" if part.number is None else f"{part.port or ''}{part.number}"


def _columns(parts: Sequence[Part]) -> list[str]:
    """All columns: heads port by port, with a gap after each, then what is no head."""
    heads = {(part.port or "", part.number) for part in parts if part.number is not None}
    ports = sorted({port for port, _ in heads}, key=["", "q", "k", "v", "qk"].index)
    found = []
    for port in ports:
        found += [f"{port}{number}" for number in sorted(n for p, n in heads if p == port)]
        found.append(" " * (ports.index(port) + 1))
    return [*found, "MLP"] if any(part.number is None for part in parts) else found[:-1]


def _over_positions(mean: EdgeScores) -> View:
    """The strongest edges, by where their sender was changed."""
    sizes = np.nan_to_num(np.abs(mean.values.to_numpy())).max(-1)
    order = np.argsort(-sizes, axis=None, kind="stable")[: min(EDGES, (sizes > 0).sum() or 1)]
    at = np.unravel_index(order, sizes.shape)
    names = words.cell_names(mean, ENDS)[at].tolist()
    values, spread = mean.values.to_numpy()[at], words.errors(mean)[at]
    cells = [[f"{name} {place}" for place in words.cell_names(mean, ("pos",))] for name in names]
    texts = _texts(np.array(cells, dtype=object), values, spread, words.unit(mean))
    ticks = words.tick_labels(mean, "pos")
    grid = Grid(values, texts, names, ticks, "Edge, strongest first", words.axis("pos"))
    n = int(mean.raw.notnull().any("pos").sum())
    said = f"the {len(names)} strongest of {n} edges" if len(names) < n else ""
    return View(grid, _untested(mean)[at], said)


def _cells(mean: EdgeScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every cell its value, what is said when it is pointed at, and whether it is untested."""
    values, names = mean.values.to_numpy(), words.cell_names(mean, mean.cell_dims)
    return values, _texts(names, values, words.errors(mean), words.unit(mean)), _untested(mean)


def _untested(mean: EdgeScores) -> np.ndarray:
    """Which cells are edges that these prompts can say nothing of."""
    return (mean.raw.notnull() & mean.values.isnull()).to_numpy()


def _texts(names: np.ndarray, values: np.ndarray, spread: np.ndarray, what: str) -> np.ndarray:
    """What is said of each cell; those without a value can be pointed at where untested."""
    texts = np.empty(values.shape, dtype=object)
    for at in np.ndindex(values.shape):
        name, value = str(names[at]), float(values[at])
        known = words.hover_text(name, value, float(spread[at]), what)
        texts[at] = known if np.isfinite(value) else f"<b>{name}</b><br>{UNTESTED}"
    return texts
