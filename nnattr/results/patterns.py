"""Where heads look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from nnattr.errors import ResultError
from nnattr.results import files

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from nnattr.plots.viewer import Viewer


@dataclass(frozen=True, eq=False)
class Patterns:
    """Attention patterns of chosen heads; made by `nnattr.attention_patterns`.

    Attributes:
        values: dims ``example``, ``head`` (labels, ``"L9H6"``), ``query_pos`` and ``key_pos``,
            positions counted from each prompt's first token; NaN behind the last token of a shorter
            prompt. Coordinates of ``head``: ``layer`` and ``number``.
        tokens: each prompt's tokens as text.
        prompts: the prompts.
        weighted: whether the values are weighted by the length of what is written from each key.
        model: the model's name.
    """

    values: xr.DataArray
    tokens: tuple[tuple[str, ...], ...]
    prompts: tuple[str, ...]
    weighted: bool
    model: str

    def __post_init__(self) -> None:
        dims = ("example", "head", "query_pos", "key_pos")
        longest = max(map(len, self.tokens), default=0)
        n = len(self.prompts)
        expected = (n, self.values.sizes.get("head"), longest, longest)
        if self.values.dims != dims or self.values.shape != expected or n != len(self.tokens):
            raise ResultError(
                f"Patterns of {n} prompts of at most {longest} tokens are {dims} = {expected}, not "
                f"{self.values.dims} = {self.values.shape}."
            )

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The heads as (layer, head), in the order in which they were asked for."""
        layers, numbers = (self.values[name].to_numpy().tolist() for name in ("layer", "number"))
        return list(zip(layers, numbers, strict=True))

    def of(self, layer: int, head: int, example: int = 0) -> xr.DataArray:
        """One head's pattern on one prompt [query_pos, key_pos], without what it does not have.

        Raises:
            ResultError: there is no such head or prompt here.
        """
        length = len(self.tokens[self.checked(example)])
        if (layer, head) not in self.heads:
            raise ResultError(
                f"There is no head ({layer}, {head}) here; there are {self.heads[:8]}"
                f"{' and more' if len(self.heads) > 8 else ''}."
            )
        one = self.values[example, self.heads.index((layer, head)), :length, :length]
        return one.reset_coords(drop=True)

    def checked(self, example: int) -> int:
        """``example``, if there is one."""
        if not 0 <= example < len(self.prompts):
            raise ResultError(
                f"There is no example {example}; expected 0 to {len(self.prompts) - 1}."
            )
        return example

    def plot(
        self,
        example: int = 0,
        *,
        heads: list[tuple[int, int]] | None = None,
        title: str | None = None,
    ) -> go.Figure:
        """One prompt's patterns as heat maps: queries down, keys across.

        Args:
            example: which prompt.
            heads: some of them; by default all.
            title: the first line above the figure; None writes one, ``""`` leaves it out.

        Returns:
            a plotly figure, not shown.

        Raises:
            ResultError: there is no such prompt or head.
        """
        from nnattr.plots.patterns import patterns_figure  # as in `Scores.plot`

        return patterns_figure(self, self.checked(example), heads=heads, title=title)

    def viewer(self, title: str | None = None) -> Viewer:
        """A page to explore the patterns with; shows itself at the end of a notebook's cell.

        Args:
            title: what stands above it; None writes one.
        """
        from nnattr.plots.viewer import viewer

        return viewer(self, title)

    def to_html(self, path: str | Path) -> Path:
        """Write `viewer` as one file that opens anywhere, without a network.

        Raises:
            ResultError: the file cannot be written.
        """
        return self.viewer().save(path)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file (the folder must exist) and return its path."""
        rest = {
            "patterns": {
                "tokens": self.tokens,
                "prompts": self.prompts,
                "weighted": self.weighted,
                "model": self.model,
            }
        }
        return files.write(path, {"values": self.values}, rest)

    @classmethod
    def load(cls, path: str | Path) -> Patterns:
        """Read what `save` wrote.

        Raises:
            ResultError: no such file, truncated or other than that, of an unknown schema version,
                or with shapes that contradict its header.
        """
        arrays, header = files.read(path)
        try:
            known = header["patterns"]
            return cls(
                values=arrays["values"],
                tokens=tuple(tuple(map(str, row)) for row in known["tokens"]),
                prompts=tuple(map(str, known["prompts"])),
                weighted=bool(known["weighted"]),
                model=str(known["model"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(f"{path} does not hold attention patterns: {error!r}") from error

    def __repr__(self) -> str:
        kind = "value-weighted patterns" if self.weighted else "patterns"
        names = [str(name) for name in self.values["head"].to_numpy()]
        shown = ", ".join(names[:12]) + (f", ... ({len(names)} heads)" if len(names) > 12 else "")
        return f"Patterns({kind} of {self.model} on {len(self.prompts)} prompts: {shown})"
