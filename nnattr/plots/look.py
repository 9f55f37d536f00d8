"""How figures look: fonts, colours, sizes, axes and headings, set on each figure alone."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np
import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, SOFT, LINE, EMPTY = "#1f2328", "#57606a", "#d0d7de", "#dfe2e6"
GREY = "#8a8f98"
BLUE, RED = "rgb(33,102,172)", "rgb(178,24,43)"
MODEBAR = 70  # pixels that plotly's buttons take in the upper right
LETTER = 6.6  # mean width in pixels of a letter of tick labels and subtitles
WIDEST = 1100
#: Plotly's buttons that repeat what a drag or a double click does, or send the figure away.
CLUTTER = ("zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "sendChartToCloud")


def limit_of(values: np.ndarray, limit: float | None) -> float:
    """Where a scale centred on zero ends: ``limit``, or the largest absolute value."""
    if limit is not None:
        return abs(limit)
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) or 1.0 if finite.size else 1.0


def heat(
    values: np.ndarray,
    scale: tuple[float, float],
    colours: Any,
    *,
    unit: str | None = None,
    bar: float | None = None,
    **own: Any,
) -> go.Heatmap:
    """The one heat map trace; what hover shows, and gaps between cells, are each figure's own.

    Args:
        values: numbers [row, column]; NaN stays empty.
        scale: the values at which the colours begin and end.
        colours: a colour scale of plotly's.
        unit: what stands along the colour bar.
        bar: the colour bar's length in pixels, beside the upper end; None for as long as the map.
        **own: further properties of the trace.
    """
    colorbar: dict[str, Any] = {"thickness": 12, "outlinewidth": 0}
    if unit is not None:
        colorbar["title"] = {"text": unit, "side": "right"}
    if bar is not None:
        colorbar |= {"lenmode": "pixels", "len": bar, "y": 1, "yanchor": "top", "x": 1.01}
    low, high = scale
    return go.Heatmap(z=values, colorscale=colours, zmin=low, zmax=high, colorbar=colorbar, **own)


def numbered(label: str, number: object) -> str:
    """A tick label with its position in grey."""
    return f"{label} <span style='color:{GREY}'>{number}</span>"


def axis(labels: list[str], title: str, room: int) -> dict[str, Any]:
    """An axis over entries 0, 1, ... with a label each, or every few where ``room`` is short.

    The entries are numbered, so that two with the same label stay two. One without a label is a
    gap: it has no tick, and counting begins anew behind it.
    """
    step, shown, since = -(-len(labels) // max(room, 1)), [], 0
    for at, label in enumerate(labels):
        since = 0 if not label.strip() else since + 1
        shown += [at] if since % step == 1 % step and since else []
    return {
        "title": {"text": title, "standoff": 8},
        "tickmode": "array",
        "tickvals": shown,
        "ticktext": [labels[i] for i in shown],
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
    }


def are_long(labels: list[str]) -> bool:
    """Whether labels (token texts) must stand upright to fit under their cells."""
    return _letters(labels) > 4


def depth(labels: list[str]) -> float:
    """The height in pixels that labels take below an axis."""
    return LETTER * _letters(labels) if are_long(labels) else 16


def _letters(labels: list[str]) -> int:
    """The number of letters of the longest label, tags not counted."""
    return max(len(re.sub("<[^>]*>", "", label)) for label in labels)


def heading(
    title: str, subtitle: str, width: float, caution: str = ""
) -> tuple[dict[str, Any], int]:
    """A title in the upper left, wrapped to the figure's width, and the height that it takes."""
    if not title:
        return {"text": ""}, 16
    first = textwrap.wrap(title, max(20, int((width - MODEBAR) / 8.6)))
    second = [
        f"<span style='font-size:12px;color:{colour}'>{line}</span>"
        for text, colour in ((subtitle, SOFT), (caution, RED))
        for line in textwrap.wrap(text, max(20, int(width / LETTER)))
    ]
    text = "<br>".join([*(f"<b>{line}</b>" for line in first), *second])
    place = {"x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"}
    style = {"font": {"size": 15}, "pad": {"t": 14, "l": 16}, "xanchor": "left"}
    return {"text": text, **place, **style}, 28 + 20 * len(first) + 17 * len(second)


def layout(
    width: float, height: float, title: str, subtitle: str, extra: int = 0, caution: str = ""
) -> dict[str, Any]:
    """The layout that all figures share, around a plot of ``height``; ``extra`` goes above it."""
    words, top = heading(title, subtitle, width - 32, caution)
    return {
        "template": "none",
        "font": {"family": FONT, "size": 12, "color": INK},
        "title": words,
        "width": round(width),
        "height": round(height + top + extra),
        "margin": {"t": top + extra, "r": 16, "b": 16, "l": 16},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "showlegend": False,
        "modebar": {"remove": [*CLUTTER], "color": LINE, "activecolor": SOFT},
        "hoverlabel": {"bgcolor": "white", "font": {"family": FONT, "color": INK}, "align": "left"},
    }
