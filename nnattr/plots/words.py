"""What a figure says in words: titles, units, tick labels and hover text.

Plotly reads a small HTML in every text, so whatever comes from a model or a tokenizer is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from nnattr.plots import look
from nnattr.results import EdgeScores, Result, Scores, cell_label, measured
from nnattr.results.edge_scores import BETWEEN

SITES = {
    "z": "head outputs (z)",
    "q": "queries (q)",
    "k": "keys (k)",
    "v": "values (v)",
    "pattern": "attention patterns",
    "attn_scores": "attention scores (attn_scores)",
    "result": "what heads add (result)",
    "embed": "token embeddings (embed)",
    "attn_out": "attention outputs (attn_out)",
    "mlp_out": "MLP outputs (mlp_out)",
    "neuron": "MLP neurons",
    "resid_pre": "the residual stream before each layer (resid_pre)",
    "resid_mid": "the residual stream between attention and MLP (resid_mid)",
    "resid_post": "the residual stream after each layer (resid_post)",
}
POSITIONS = {
    "all": "all positions together",
    "each": "one position at a time",
    "last": "last token",
}
REPLACED = {
    "zero": "set to zero",
    "mean": "set to the mean",
    "mean_positional": "set to each position's mean",
    "resample": "taken from other prompts",
}
AXES = {
    "kv_head": "Key/value head",
    "pos": "Position",
    "query_pos": "Query position",
    "key_pos": "Key position",
}
#: Methods whose name is not the noun that a title has.
NOUNS = {"ablate": "Ablation", "ablate_together": "Ablation"}
#: Methods that take one run apart, and whose cells add up to it.
CONTRIBUTIONS = ("direct_logit_attribution", "next_token_attribution")
LONGEST_TOKEN = 14


def safe(text: str) -> str:
    """``text`` as plotly is to show it: no tags, and no dollar signs that MathJax would take."""
    return escape(text, quote=False).replace("$", "&#36;")


def open_dims(scores: Scores) -> tuple[str, ...]:
    """The cell dimensions that need an axis: those longer than 1 (or the last, if none is)."""
    dims = scores.cell_dims
    return tuple(dim for dim in dims if scores.raw.sizes[dim] > 1) or dims[-1:]


def method_name(scores: Scores) -> str:
    """The method in plain words, e.g. ``Activation patching``."""
    method = scores.provenance.method
    return NOUNS.get(method, method.replace("_", " ").capitalize())


def unit(scores: Scores) -> str:
    """What a value is: ``normalised change of LogitDiff``."""
    metric = safe(scores.provenance.metric.removesuffix("()"))
    if scores.provenance.method in CONTRIBUTIONS:
        whole = scores.provenance.arguments.get("unit") == "accumulated"
        return metric if whole else f"contribution to {metric}"
    normalised = scores.provenance.arguments.get("normalized", False)
    what = "magnitude" if scores.provenance.arguments.get("estimator") == "atp*" else "change"
    return f"{'normalised ' if normalised else ''}{what} of {metric}"


def title(scores: Scores) -> str:
    """The first line of a figure: method and site."""
    site = scores.provenance.arguments.get("site")
    return method_name(scores) + (f" of {SITES.get(site, safe(str(site)))}" if site else "")


def subtitle(scores: Scores) -> str:
    """The second line: direction or replacement, cells and positions, model, number of examples.

    Of edges also what was frozen between their ends.
    """
    arguments = scores.provenance.arguments
    parts = [
        REPLACED.get(arguments.get("replacement", ""), arguments.get("direction")),
        _estimator(arguments.get("estimator")),
        BETWEEN.get(scores.between, scores.between) if isinstance(scores, EdgeScores) else None,
        _positions(arguments["positions"]) if "positions" in arguments else None,
        scores.provenance.asked,
        safe(scores.provenance.subject),
        f"n = {scores.baselines.sizes['example']}",
    ]
    return " · ".join(part for part in parts if part)


def _estimator(name: str | None) -> str | None:
    """Which estimator, if it is not the plain gradient."""
    return None if name in (None, "gradient") else f"estimator {name}"


def caution(result: Result) -> str:
    """What speaks against normalised scores, as a line below the subtitle; nothing if nothing."""
    text = result.provenance.caution
    return f"Caution: {safe(text)}" if text else ""


def axis(dim: str) -> str:
    """What the axis of ``dim`` is called."""
    return AXES.get(dim, dim.replace("_", " ").capitalize())


def axis_title(scores: Scores, dim: str) -> str:
    """The axis of ``dim``, with what is fixed beside it: ``Head of layer 9``."""
    ends = dim == "pos" and int(scores.raw[dim][0]) < 0
    fixed = [
        f"{axis(other).lower()} {scores.raw[other].item()}"
        for other in scores.cell_dims
        if other != dim and scores.raw.sizes[other] == 1
    ]
    name = f"{axis(dim)}{' from the end' if ends else ''}"
    return name + (f" ({', '.join(fixed)})" if fixed else "")


def tick_labels(scores: Scores, dim: str) -> list[str]:
    """One label per entry of ``dim``: its number, after its token where the scores know that."""
    numbers = [safe(str(number)) for number in scores.raw[dim].to_numpy()]
    if dim != "pos" or "token" not in scores.raw.coords:
        return numbers
    tokens = np.atleast_1d(scores.raw["token"].to_numpy())
    return [
        look.numbered(token_label(str(token)), number)
        for token, number in zip(tokens, numbers, strict=True)
    ]


def errors(scores: Scores) -> np.ndarray:
    """Standard errors of averaged scores, NaN where they are not known."""
    known = scores.error is not None
    return scores.stderr().to_numpy() if known else np.full(scores.raw.shape, np.nan)


def cell_names(scores: Scores, dims: tuple[str, ...]) -> np.ndarray:
    """The name of every cell along ``dims``, in their shape: ``L9H6``, ``L3 pos 10 ' John'``."""
    coords = [scores.raw[dim].to_numpy() for dim in dims]
    known = "pos" in dims and "token" in scores.raw.coords
    tokens = np.atleast_1d(scores.raw["token"].to_numpy()) if known else None
    names = np.empty([len(values) for values in coords], dtype=object)
    for at in np.ndindex(names.shape):
        cell: dict[str, Any] = {
            dim: values[i] for dim, values, i in zip(dims, coords, at, strict=True)
        }
        token = None if tokens is None else str(tokens[at[dims.index("pos")]])
        names[at] = safe(cell_label(cell, token))
    return names


def hover_texts(scores: Scores) -> np.ndarray:
    """For every cell of averaged scores what it is, its value and its standard error."""
    names, spread, what = cell_names(scores, scores.cell_dims), errors(scores), unit(scores)
    values = scores.values.to_numpy()
    texts = np.empty(values.shape, dtype=object)
    for at in np.ndindex(values.shape):
        texts[at] = hover_text(str(names[at]), float(values[at]), float(spread[at]), what)
    return texts


def hover_text(name: str, value: float, error: float, what: str) -> str:
    """What is said of one cell that is pointed at; ``name`` and ``what`` as plotly shows them."""
    text = f"<b>{name}</b><br>{what}<br>{measured(value, error)}"
    return f"{text} (standard error)" if np.isfinite(error) else text


def _positions(given: Any) -> str:
    if isinstance(given, str):
        return POSITIONS.get(given, f"at {safe(given)}")
    if isinstance(given, int):
        return f"position {given}"
    return f"positions {', '.join(map(str, given))} together"


def shown(token: str, longest: int = LONGEST_TOKEN) -> str:
    """A token short enough for an axis or a cell, with what cannot be seen written out."""
    text = token.strip(" ").replace("\n", "\\n").replace("\t", "\\t") or "␣"
    return text if len(text) <= longest else text[: longest - 1] + "…"


def token_label(token: str, longest: int = LONGEST_TOKEN) -> str:
    """The same as plotly is to show it."""
    return safe(shown(token, longest))
