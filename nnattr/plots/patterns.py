"""Attention patterns as heat maps: one large, or many small ones under one scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from nnattr.arguments import Natural, checked
from nnattr.errors import ResultError
from nnattr.graph import Part
from nnattr.plots import look, words
from nnattr.results import Patterns

SIDE = 520  # pixels of a single map
ROW = 4  # small maps beside each other
LABELLED = 48  # tokens up to which every one has its label
FEW = 20  # the same for small maps


@checked
def patterns_figure(
    patterns: Patterns,
    example: Natural = 0,
    *,
    heads: list[tuple[int, int]] | None = None,
    title: str | None = None,
) -> go.Figure:
    """One prompt's patterns: queries down, keys across; one scale for all heads.

    Arguments are those of `Patterns.plot`, which returns this. With many heads (above 64) prefer
    ``patterns.viewer()``.

    Raises:
        ResultError: there is no such head.
    """
    shown = patterns.heads if heads is None else [tuple(head) for head in heads]
    if not shown:
        raise ResultError("No heads were given; name at least one, or leave heads out for all.")
    maps = [patterns.of(*head, example=example).to_numpy() for head in shown]
    names = [str(Part("head", layer, head)) for layer, head in shown]
    labels = [
        look.numbered(words.token_label(text), i) for i, text in enumerate(patterns.tokens[example])
    ]
    end = max(float(one.max()) for one in maps) if patterns.weighted else 1.0
    draw = _one if len(maps) == 1 else _many
    figure, wide, tall = draw(maps, names, labels, end or 1.0, _what(patterns))
    kind = "Value-weighted attention" if patterns.weighted else "Attention"
    of = names[0] if len(names) == 1 else f"{len(names)} heads"
    head = f"{kind} of {of} of {words.safe(patterns.model)}" if title is None else title
    prompt = words.safe(patterns.prompts[example])
    layout = look.layout(wide, tall, head, f"{prompt} · queries down, keys across")
    return figure.update_layout(layout)


def _what(patterns: Patterns) -> str:
    return "attention · |v W<sub>O</sub>|" if patterns.weighted else "attention"


def _one(
    maps: list[np.ndarray], names: list[str], labels: list[str], end: float, what: str
) -> tuple[go.Figure, float, float]:
    """A single map with its tokens along both axes, and its size."""
    figure = go.Figure(_trace(maps[0], names[0], labels, end, what, bar=True))
    room = LABELLED if len(labels) <= LABELLED else LABELLED // 2
    across = look.axis(labels, "Key: the token looked at", room)
    down = look.axis(labels, "Query: the token that looks", room)
    across["tickangle"] = -90 if look.are_long(labels) else 0
    figure.update_layout(xaxis=across, yaxis={**down, "autorange": "reversed"})
    space = 60 + look.depth(labels)
    return figure, SIDE + space + 90, SIDE + space


def _many(
    maps: list[np.ndarray], names: list[str], labels: list[str], end: float, what: str
) -> tuple[go.Figure, float, float]:
    """Small maps under their names, tokens along the outer axes alone, and the size of all."""
    from plotly.subplots import make_subplots

    columns = min(ROW, len(maps))
    rows = -(-len(maps) // columns)
    space = look.depth(labels) + 40 if len(labels) <= FEW else 40.0
    side = (look.WIDEST - 110 - space) / ROW
    tall = rows * (side + 34)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=names,
        horizontal_spacing=0.02 if columns > 1 else 0,
        vertical_spacing=min(34 / tall, 1 / rows) if rows > 1 else 0,
    )
    for i, (one, name) in enumerate(zip(maps, names, strict=True)):
        row, column = divmod(i, columns)
        outer = {"x": i + columns >= len(maps), "y": column == 0}
        trace = _trace(one, name, labels, end, what, bar=i == 0)
        figure.add_trace(trace, row=row + 1, col=column + 1)
        room = len(labels) if len(labels) <= FEW else 5
        for key in ("x", "y"):
            ticks = look.axis(labels if len(labels) <= FEW else _numbers(labels), "", room)
            ticks |= {"showticklabels": outer[key], "ticks": "outside" if outer[key] else ""}
            if key == "y":
                ticks["autorange"] = "reversed"
            elif len(labels) <= FEW:
                ticks["tickangle"] = -90
            update: Any = getattr(figure, f"update_{key}axes")
            update(ticks, row=row + 1, col=column + 1)
    figure.update_annotations(font_size=12)
    return figure, columns * (side + 16) + space + 110, tall + space


def _numbers(labels: list[str]) -> list[str]:
    return [str(i) for i in range(len(labels))]


def _trace(
    pattern: np.ndarray, name: str, labels: list[str], end: float, what: str, bar: bool
) -> go.Heatmap:
    """The map; what lies after a query is left blank, as it cannot be looked at."""
    later = np.triu(np.ones_like(pattern, dtype=bool), 1)
    texts = np.array(labels, dtype=object)
    hover = np.empty((*pattern.shape, 2), dtype=object)
    hover[..., 0], hover[..., 1] = texts[:, None], texts[None, :]
    return look.heat(
        np.where(later, np.nan, pattern),
        (0, end),
        "Blues",
        unit=what,
        bar=240,
        customdata=hover,
        hovertemplate=(
            f"<b>{name}</b><br>%{{customdata[0]}} looks at %{{customdata[1]}}<br>{what} %{{z:.3f}}"
            "<extra></extra>"
        ),
        hoverongaps=False,
        showscale=bar,
    )
