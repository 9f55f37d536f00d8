"""One head's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnattr.linalg import FactoredMatrix
from nnattr.results.base import Result


@dataclass(frozen=True, eq=False, repr=False)
class HeadWeights(Result):
    """The four matrices of a head, in float32, for vectors on their left: ``x @ W_Q``.

    Made by `nnattr.weights.head`. Each is an attribute, as a tensor: ``W_Q``, ``W_K`` and ``W_V``
    [d_model, d_head], ``W_O`` [d_head, d_model], and the biases ``b_Q``, ``b_K`` and ``b_V``
    [d_head], zero where the model has none. Under grouped-query attention ``W_K`` and ``W_V`` are
    those of the head's group.

    Attributes:
        data: the same by their names.
        provenance: how this was made.
        head: (layer, head).
    """

    VARIABLES: ClassVar = {
        **dict.fromkeys(("W_Q", "W_K", "W_V"), ("d_model", "d_head")),
        "W_O": ("d_head", "d_model"),
        **dict.fromkeys(("b_Q", "b_K", "b_V"), ("d_head",)),
    }

    head: tuple[int, int]

    def __getattr__(self, name: str) -> Tensor:
        if name not in HeadWeights.VARIABLES:
            raise AttributeError(f"HeadWeights has no {name!r}")
        return torch.from_numpy(self.data[name].to_numpy())

    @property
    def ov(self) -> FactoredMatrix:
        """``W_V @ W_O``: what the head writes for what it attends to."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def qk(self) -> FactoredMatrix:
        """``W_Q @ W_K.T``: the score of a query (left) and a key (right), without turn or scale."""
        return FactoredMatrix(self.W_Q, self.W_K.T)

    def __repr__(self) -> str:
        return f"HeadWeights(head={self.head})"
