"""The logit lens as a figure: what each layer would say, in the cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from nnattr.arguments import Natural, checked
from nnattr.errors import ResultError
from nnattr.plots import look, words
from nnattr.results import Lens

#: What shades a cell, and where its scale ends (None: at the largest value).
SHADES = {"probability": ("probability of the token", 1.0), "entropy": ("entropy (nats)", None)}
LONGEST = 10  # letters of a token that a cell shows
TALL = 26  # pixels


@checked
def lens_figure(
    lens: Lens, example: Natural = 0, *, colour: str = "probability", title: str | None = None
) -> go.Figure:
    """Points of the residual stream down, positions across, the likeliest token in each cell.

    Point at a cell for the other tokens, the entropy and the answer's standing. Arguments are those
    of `Lens.plot`, which returns this.

    Raises:
        ResultError: there is no such colour.
    """
    if colour not in SHADES:
        raise ResultError(f"colour is {colour!r}; expected {' or '.join(map(repr, SHADES))}.")
    data = lens.data.isel(example=example)
    data = data.isel(pos=np.flatnonzero(data["position"].to_numpy() >= 0))
    data = data.assign_coords(position=data["position"].astype(int))
    tokens = data["token"].to_numpy()
    shown = np.vectorize(_short, otypes=[object])(tokens[..., 0])
    shade = data[colour].to_numpy()
    shade = shade[..., 0] if colour == "probability" else shade
    letters = max(map(len, shown.ravel()))
    wide = min(max(48.0, letters * look.LETTER + 14) * shown.shape[1], look.WIDEST)
    labels = [
        look.numbered(words.token_label(str(token), LONGEST), position)
        for token, position in zip(
            data["prompt_token"].to_numpy(), data["position"].to_numpy(), strict=True
        )
    ]
    trace = _trace(
        shade, np.vectorize(words.safe, otypes=[object])(shown), _hover(lens, data), colour
    )
    head = f"Logit lens of {words.safe(lens.model)}" if title is None else title
    prompt = words.safe(lens.prompts[example])
    tall = TALL * shown.shape[0]
    figure = go.Figure(trace)
    figure.update_layout(look.layout(wide + 200, tall + 90 + look.depth(labels), head, prompt))
    across = look.axis(labels, "Token read", int(wide / 15))
    across["tickangle"] = -90 if look.are_long(labels) else 0
    down = look.axis(lens.points, "Residual stream", len(lens.points))
    return figure.update_layout(xaxis=across, yaxis={**down, "autorange": "reversed"})


def _trace(shade: np.ndarray, shown: np.ndarray, hover: np.ndarray, colour: str) -> go.Heatmap:
    what, end = SHADES[colour]
    return look.heat(
        shade,
        (0, end if end is not None else float(np.nanmax(shade)) or 1.0),
        "Blues",
        unit=what,
        text=shown,
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        xgap=1,
        ygap=1,
    )


def _hover(lens: Lens, data: Any) -> np.ndarray:
    """For every cell the likeliest tokens with their probabilities, and how the answer fares."""
    tokens, shares = data["token"].to_numpy(), data["probability"].to_numpy()
    texts = np.empty(tokens.shape[:2], dtype=object)
    for point, pos in np.ndindex(texts.shape):
        at = {"component": point, "pos": pos}
        lines = [f"<b>{lens.points[point]}</b>, position {int(data['position'][pos])}"]
        lines += [
            f"{words.safe(repr(token))} {share:.1%}"
            for token, share in zip(tokens[point, pos], shares[point, pos], strict=True)
        ]
        lines.append(f"entropy {float(data['entropy'].isel(at)):.2f} nats")
        if lens.answers:
            rank = int(data["answer_rank"].isel(at))
            share = float(data["answer_probability"].isel(at))
            lines.append(f"answer: rank {rank}, {share:.1%}")
        texts[point, pos] = "<br>".join(lines)
    return texts


def _short(token: str) -> str:
    """A token short enough for a cell."""
    return words.shown(token, LONGEST)
