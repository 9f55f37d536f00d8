"""One change of every run of a model: how it travels, and what it is in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Edit:
    """What `nnattr.edited` does to a model, made ready for it.

    Attributes:
        said: in words, such as ``"L1H2 ablated (zero)"``; kept by every result.
        sites: the sites that it changes.
        places: of each place the layer, where it is, whether that is within attention, and which
            entries are replaced [width] (None where a vector is added).
        vector: what is added [width]; None for an ablation.
        dataset: the prompts whose mean takes the place of parts, as ids and mask; empty for zeros.
        rows: how many of these are run at a time.
        because: why patched rows need whole passes under it; empty if they do not.
    """

    said: str
    sites: tuple[str, ...]
    places: tuple[tuple[int, tuple[Any, ...], bool, Tensor | None], ...]
    vector: Tensor | None
    dataset: dict[str, Tensor]
    rows: int
    because: str

    @property
    def payload(self) -> dict[str, Any]:
        """What travels: see `nnattr.runs.edits.edited`."""
        return {
            "places": list(self.places),
            "vector": self.vector,
            "dataset": self.dataset,
            "rows": self.rows,
            "because": self.because,
        }
