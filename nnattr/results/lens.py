"""What the logit lens saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nnattr.arguments import Natural, checked
from nnattr.results.base import Result
from nnattr.results.cells import counted

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Shade = Literal["probability", "entropy"]


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Result):
    """The tokens that each layer's residual stream would predict; made by `nnattr.logit_lens`.

    Attributes:
        data: dims ``example``, ``component`` (the points of the residual stream: ``"L0 pre"``, ...,
            ``"final"``), ``pos`` and ``rank`` (0 is the likeliest). Variables: ``token`` (text) and
            ``probability`` by rank; ``entropy`` in nats; with answers ``answer_probability`` and
            ``answer_rank`` (0 is the likeliest). Coordinates of (example, pos): ``position``,
            counted from the prompt's first token (NaN where it has none), and ``prompt_token``.
        provenance: how this was made.
        prompts: the prompts.
        answers: one for each prompt, or none.
    """

    VARIABLES: ClassVar = {
        "token": ("example", "component", "pos", "rank"),
        "probability": ("example", "component", "pos", "rank"),
        "entropy": ("example", "component", "pos"),
    }

    prompts: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def points(self) -> list[str]:
        """The points of the residual stream, first to last."""
        return [str(name) for name in self.data["component"].to_numpy()]

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per example, point, position and rank."""
        table = self.data.to_dataframe().reset_index().drop(columns="pos")
        there = table.query("position >= 0").reset_index(drop=True)
        return there.astype({"position": int})

    @checked
    def plot(
        self, example: Natural = 0, *, colour: Shade = "probability", title: str | None = None
    ) -> go.Figure:
        """One prompt as a figure: points down, positions across, the likeliest token in each cell.

        Args:
            example: which prompt.
            colour: what shades a cell, the ``"probability"`` of its token or the ``"entropy"``.
            title: the first line above the figure; None writes one, ``""`` leaves it out.

        Returns:
            a plotly figure, not shown.

        Raises:
            ResultError: there is no such prompt, or no such colour.
        """
        return self._drawn("plot", self._example(example), colour=colour, title=title)

    def __repr__(self) -> str:
        last = self.data.isel(example=0, pos=-1)
        read = counted(len(self.prompts), "prompt")
        head = f"Lens({self.model}, {read}): the last position of the first"
        lines = (self._line(last.isel(component=i)) for i in range(len(self.points)))
        return "\n".join([head, repr(self.prompts[0]), *lines])

    def _line(self, cell: Any) -> str:
        guesses = zip(cell["token"].to_numpy(), cell["probability"].to_numpy(), strict=True)
        shown = "  ".join(f"{token!r} {share:.1%}" for token, share in guesses)
        rank = f"  answer rank {int(cell['answer_rank'])}" if self.answers else ""
        return f"{cell['component'].item():>9}  {shown}{rank}"
