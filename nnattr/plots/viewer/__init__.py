"""A page to explore attention patterns with: one file, no network, a mouse or a keyboard.

The page holds its data, its style and a small script (`viewer.*`, beside this file).
Whatever comes from a model or a tokenizer is data there: it is shown as text, never read as HTML,
and the page's own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnattr.arguments import Page, checked
from nnattr.errors import ResultError
from nnattr.results import Patterns
from nnattr.templates import fill

WIDEST = 16  # heads of a layer that stand in one row
STEPS = 65535  # a value is kept as a share of the largest, in 16 bits


@dataclass(frozen=True)
class Viewer:
    """The page; shows itself at the end of a notebook's cell.

    Attributes:
        html: all of it.
    """

    html: str

    @checked
    def save(self, path: Page) -> Path:
        """Write the page to an ``.html`` file and return its path.

        Raises:
            ArgumentError: the path has another ending.
            ResultError: it cannot be written.
        """
        try:
            Path(path).write_text(self.html, encoding="utf-8")
        except OSError as error:
            raise ResultError(f"The page could not be written to {str(path)!r}: {error}") from error
        return Path(path)

    def _repr_html_(self) -> str:
        return fill("plots/viewer/frame.html.jinja", page=self.html)

    def __repr__(self) -> str:
        return f"Viewer({len(self.html) / 1e6:.1f} MB; .save(path) writes it)"


@checked
def viewer(patterns: Patterns, title: str | None = None) -> Viewer:
    """The page for these patterns; `Patterns.viewer` returns this.

    Its size is about 2.7 bytes for each head, query and key at or before the query.
    """
    kind = "Value-weighted attention" if patterns.weighted else "Attention"
    lead = (
        "How long a vector each head writes because of each earlier token: the attention times "
        "the length of the value behind the output projection."
        if patterns.weighted
        else "How much each head attends to each earlier token. Attention is not attribution: a "
        "large weight says what is read, not that it matters."
    )
    page = fill(
        "plots/viewer/viewer.html.jinja",
        title=title or f"{kind} of {patterns.model}",
        lead=lead,
        data=_data(patterns),
    )
    return Viewer(page)


def _data(patterns: Patterns) -> dict[str, Any]:
    """What the script reads: names, texts, and the numbers of each prompt in base 64."""
    largest = float(np.nanmax(patterns.values)) if patterns.weighted else 1.0
    largest = largest if largest > 0 else 1.0
    prompts = []
    for i, tokens in enumerate(patterns.tokens):
        n = len(tokens)
        shares = patterns.values[i, :, :n, :n].to_numpy()[:, *np.tril_indices(n)] / largest
        numbers = np.rint(shares.clip(0, 1) * STEPS).astype("<u2")
        prompts.append({"tokens": tokens, "values": base64.b64encode(numbers.tobytes()).decode()})
    return {
        "heads": [str(name) for name in patterns.values["head"].to_numpy()],
        "columns": _columns(patterns.heads),
        "largest": largest,
        "weighted": patterns.weighted,
        "prompts": prompts,
    }


def _columns(heads: list[tuple[int, int]]) -> int:
    """How many heads a layer has, where these are all heads of some layers in order; else 0."""
    wide = 1 + max(head for _, head in heads)
    layers = list(dict.fromkeys(layer for layer, _ in heads))
    whole = [(layer, head) for layer in layers for head in range(wide)]
    return wide if heads == whole and wide <= WIDEST else 0
