"""HTML pages that open anywhere: one file, no network, readable on a phone, in print, in a browser.

A page is made of blocks; here is a function for each kind. Arguments that are `Markup` are blocks
or pieces of them; all others are plain text, which the templates escape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from nnattr.templates import fill, piece


def document(title: str, lead: Markup, blocks: Iterable[Markup]) -> str:
    """A whole page, with plotly.js in it (once, about 5 MB)."""
    from plotly.offline import get_plotlyjs

    plotly = Markup(get_plotlyjs())
    return fill(
        "report/templates/page.html.jinja", title=title, plotly=plotly, lead=lead, blocks=blocks
    )


def section(heading: str, *blocks: Markup) -> Markup:
    """A part of the page under its heading."""
    return _block("section", heading, blocks)


def heading(text: str) -> Markup:
    """A heading inside a section."""
    return _block("heading", text)


def paragraph(text: str, kind: str = "") -> Markup:
    """A paragraph.

    Args:
        text: what it says.
        kind: ``"lead"`` under the title, ``"soft"`` for side remarks, ``"caution"`` for what speaks
            against the numbers beside it.
    """
    return _block("paragraph", text, kind)


def figure(
    picture: go.Figure, name: str, caption: str, heading: str = "", kind: str = ""
) -> Markup:
    """A plotly figure as wide as the page allows, with a caption.

    Args:
        picture: it keeps its height and gives up its width.
        name: an id, unique on the page.
        caption: what is seen.
        heading: a line above it, in place of the figure's own title.
        kind: ``"narrow"`` for a figure that should not fill the page, ``"wide"`` for one that on a
            narrow page is scrolled rather than squeezed.
    """
    flexible = go.Figure(picture).update_layout(width=None, autosize=True, dragmode=False)
    drawn = flexible.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True, "plotlyServerURL": ""},
    )
    return _block("figure", Markup(drawn), caption, heading, kind)


def side_by_side(*blocks: Markup) -> Markup:
    """Two blocks beside each other, or one under the other where the page is narrow."""
    return _block("side_by_side", blocks)


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table under its caption."""
    return _block("table", caption, header, rows)


def facts(entries: Mapping[str, str]) -> Markup:
    """The few numbers that matter most, each over what it is."""
    return _block("facts", entries)


def definitions(entries: Mapping[str, str]) -> Markup:
    """Names and values, line by line."""
    return _block("definitions", entries)


def code(text: str) -> Markup:
    """A piece of code."""
    return _block("code", text)


def folded(label: str, block: Markup) -> Markup:
    """A block that is closed until the reader opens it; in print it is open."""
    return _block("folded", label, block)


def pairs(entries: Iterable[Sequence[tuple[str, Markup, str]]]) -> Markup:
    """Prompt pairs, each a list of (which run, the prompt as `marked`, its answer)."""
    return _block("pairs", entries)


def marked(tokens: Sequence[str], others: Sequence[str]) -> Markup:
    """The text of ``tokens``, with those marked that differ from ``others``."""
    pieces = []
    for token, other in zip(tokens, others, strict=True):
        word = token.lstrip(" ")
        pieces.append((token[: len(token) - len(word)], word, token != other))
    return _block("marked", pieces)


def _block(kind: str, *values: Any) -> Markup:
    return piece("report/templates/blocks.html.jinja", kind, *values)
