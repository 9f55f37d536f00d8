"""One change of every run of a model: how it travels, and what it is in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from nnattr.tasks.positions import Positions
from nnattr.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Edit:
    """What `nnattr.edited` does to a model, made ready for it.

    Attributes:
        given: what `nnattr.edit` made of the user's words.
        said: in words, such as ``"L1H2 ablated (zero)"``; kept by every result.
        sites: the sites that it changes.
        places: of each place the layer, where it is, whether that is within attention, and which
            entries are replaced [width] (None where a vector is added).
        because: why patched rows need whole passes under it; empty if they do not.
        vector: what is added [width]; None for an ablation.
        positions: which tokens it changes; None for all.
        dataset: the prompts whose values take the place of parts, as they travel; empty for zeros.
        rows: how many of these are run at a time.
        by: of these the mean over all tokens (``""``), the mean at each ``"position"``, or the
            values of each ``"prompt"``.
        prompts: the same prompts; None without a dataset.
        seed: draws one of them for each example; None where example *i* has prompt *i*.
    """

    given: Any
    said: str
    sites: tuple[str, ...]
    places: tuple[tuple[int, tuple[Any, ...], bool, Tensor | None], ...]
    because: str = ""
    vector: Tensor | None = None
    positions: Positions | None = None
    dataset: dict[str, Any] | None = None
    rows: int = 1
    by: Literal["", "position", "prompt"] = ""
    prompts: Tokens | None = None
    seed: int | None = None

    @property
    def marked(self) -> bool:
        """Whether it is not the same at all tokens of all prompts."""
        return self.positions is not None or bool(self.by)

    @property
    def payload(self) -> dict[str, Any]:
        """What travels: see `nnattr.runs.edits.edited`."""
        return {
            "places": list(self.places),
            "vector": self.vector,
            "dataset": self.dataset or {},
            "rows": self.rows,
            "by": self.by,
            "marked": self.marked,
            "because": self.because,
        }
