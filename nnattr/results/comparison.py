"""How far apart a model's predictions on two sets of prompts are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from nnattr.arguments import checked
from nnattr.results.base import Result
from nnattr.results.cells import counted

if TYPE_CHECKING:
    import plotly.graph_objects as go

Distance = Literal["norm", "kl", "overlap"]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Distances between two prompts' next-token distributions; made by `nnattr.compare_runs`.

    Attributes:
        data: dims ``example``, and ``pos`` for ``positions="each"`` (counted from the end where
            pairs differ in length; NaN where a shorter one has none); variables ``norm``, ``kl``
            (of b from a, in nats) and ``overlap`` (0 to 1).
        provenance: how this was made; its task holds the prompts of ``a``, then those of ``b``.
        a, b: the prompts.
        top_k: among how many likeliest tokens ``overlap`` counts.
    """

    VARIABLES: ClassVar = {"norm": None, "kl": None, "overlap": None}

    a: tuple[str, ...]
    b: tuple[str, ...]
    top_k: int

    @checked
    def plot(self, what: Distance = "kl", *, title: str | None = None) -> go.Figure:
        """One distance: a bar per pair, or a heat map of pairs by positions.

        Args:
            what: which of the variables.
            title: the first line above the figure; None writes one, ``""`` leaves it out.

        Raises:
            ResultError: there is no such distance.
        """
        return self._drawn("plot", what, title=title)

    def __str__(self) -> str:
        means = {name: float(self.data[name].mean()) for name in ("norm", "kl", "overlap")}
        return (
            f"{counted(len(self.a), 'pair')}: logits differ by a norm of {means['norm']:.3f}, KL "
            f"{means['kl']:.4f} nats, {means['overlap']:.0%} of the top {self.top_k} shared (means)"
        )

    def __repr__(self) -> str:
        return f"Comparison({self.model})\n{self}"
