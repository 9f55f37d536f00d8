"""Figures of results that are mostly read as numbers: bars, lines and one heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from nnattr.arguments import checked
from nnattr.errors import ResultError
from nnattr.plots import look, words
from nnattr.plots.matrix import matrix
from nnattr.results import (
    Activations,
    AnswerTable,
    Comparison,
    HeadWeights,
    Inspection,
    WeightMatrix,
)
from nnattr.results.cells import counted
from nnattr.results.inspection import Step

DISTANCES = {
    "norm": "norm of the difference of logits",
    "kl": "KL divergence (nats)",
    "overlap": "share of the likeliest tokens in common",
}


@checked
def comparison_figure(
    found: Comparison, what: str = "kl", *, title: str | None = None
) -> go.Figure:
    """A bar per pair, or pairs by positions; see `Comparison.plot`.

    Raises:
        ResultError: there is no such distance.
    """
    if what not in DISTANCES:
        raise ResultError(f"what is {what!r}; expected one of {', '.join(map(repr, DISTANCES))}.")
    values, unit = found.data[what], DISTANCES[what]
    head = f"Predictions of {words.safe(found.model)} compared" if title is None else title
    second = f"{counted(len(found.a), 'pair')} of prompts"
    if "pos" in values.dims:
        return matrix(values, title=head, subtitle=second, unit=unit)
    labels = [str(number) for number in range(len(found.a))]
    texts = [f"{words.safe(a)}<br>{words.safe(b)}" for a, b in zip(found.a, found.b, strict=True)]
    return bars(values.to_numpy(), labels, texts, ("Pair", unit), head, second)


@checked
def inspection_figure(found: Inspection, step: Step, *, title: str | None = None) -> go.Figure:
    """The likeliest tokens of one step; see `Inspection.plot`."""
    rows = step.rows
    labels = [words.token_label(guess.token) for guess in rows]
    texts = [f"{words.safe(repr(one.token))}, rank {one.rank}" for one in rows]
    head = f"What {words.safe(found.model)} expects next" if title is None else title
    marked = [guess is step.answer for guess in rows]
    said = words.safe("".join(found.prompt))
    values = np.array([guess.probability for guess in rows])
    return bars(values, labels, texts, ("Token", "probability"), head, said, marked)


@checked
def answers_figure(found: AnswerTable, *, title: str | None = None) -> go.Figure:
    """How often each word begins an answer."""
    labels = [words.token_label(one.token) for one in found]
    texts = [f"{words.safe(repr(one.token))}: mean probability {one.prob:.2f}" for one in found]
    head = f"First words of {words.safe(found.model)}'s answers" if title is None else title
    counts = np.array([one.count for one in found])
    return bars(counts, labels, texts, ("Token", "prompts"), head, "")


@checked
def head_weights_figure(found: HeadWeights, *, title: str | None = None) -> go.Figure:
    """The singular values of what the head writes (OV) and of how it attends (QK)."""
    figure = go.Figure()
    for name, product, colour in (("OV", found.ov, look.BLUE), ("QK", found.qk, look.RED)):
        sizes = product.svd()[1].numpy()
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=np.arange(len(sizes)), y=sizes, name=name, mode="lines", line=line)
    layer, head = found.head
    first = f"Singular values of L{layer}H{head}" if title is None else title
    figure.update_layout(look.layout(620, 340, first, words.safe(found.model)))
    grid = {"gridcolor": look.LINE, "zeroline": False, "automargin": True}
    return figure.update_layout(
        showlegend=True,
        xaxis={**grid, "title": {"text": "Direction"}, "showgrid": False},
        yaxis={**grid, "title": {"text": "Singular value"}, "rangemode": "tozero"},
    )


@checked
def weight_matrix_figure(found: WeightMatrix, **options: Any) -> go.Figure:
    """The entries as a heat map; the options are those of `nnattr.plots.matrix`."""
    unit = "attention" if "query_pos" in found.values.dims else "value"
    return matrix(found.values, **{"subtitle": words.safe(found.model), "unit": unit, **options})


@checked
def activations_figure(
    found: Activations, site: str, example: int = 0, *, title: str | None = None
) -> go.Figure:
    """The length of an activation by layer and position; see `Activations.plot`."""
    values = found[site].isel(example=example)
    values = values if "layer" in values.dims else values.expand_dims(layer=[0])
    kept = ("layer", "query_pos" if "query_pos" in values.dims else "pos")
    values = values.isel({kept[1]: np.flatnonzero(values["position"].notnull())})
    places = values["position"].to_numpy().astype(int)
    rest = [dim for dim in values.dims if dim not in kept]
    values = values.where(np.isfinite(values))  # scores of keys that a query may not see
    lengths = ((values**2).sum(rest, min_count=1) ** 0.5).transpose(*kept)
    head = f"Length of {words.SITES.get(site, words.safe(site))}" if title is None else title
    shown = lengths.reset_coords(drop=True).assign_coords({kept[1]: places})
    return matrix(shown, title=head, unit="length")


def bars(
    values: np.ndarray,
    labels: Sequence[str],
    texts: Sequence[str],
    axes: tuple[str, str],
    title: str,
    subtitle: str,
    marked: Sequence[bool] = (),
) -> go.Figure:
    """A bar for each of the values, some of them in another colour."""
    colours = [look.RED if mark else look.BLUE for mark in marked] or look.BLUE
    figure = go.Figure(
        go.Bar(
            x=np.arange(len(values)),
            y=values,
            marker={"color": colours},
            hovertext=list(texts),
            hovertemplate="%{hovertext}<br>%{y:.4g}<extra></extra>",
        )
    )
    width = float(np.clip(44 * len(labels), 360, look.WIDEST - 100))
    room = 60 + look.depth(list(labels))
    figure.update_layout(look.layout(width + 100, 280 + room, title, subtitle))
    across = look.axis(list(labels), axes[0], int(width / 17))
    if look.are_long(list(labels)):
        across["tickangle"] = -90
    down = {"title": {"text": axes[1], "standoff": 8}, "gridcolor": look.LINE, "automargin": True}
    return figure.update_layout(xaxis=across, yaxis=down, bargap=0.25)
