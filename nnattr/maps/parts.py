"""How what attention or an MLP adds to the residual stream falls apart into heads or neurons.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import linear_map
from nnattr.maps.norm import Frozen, frozen


class Split:
    """A layer's attention that is split into heads, or its MLP into neurons.

    Attributes:
        part: the name of what all of it adds up to.
        inner, projected: the names of what enters its output projection and of what leaves it.
        projection: the path of that projection.
        post: the path of the norm behind it, or None.
        factor: what it is multiplied with before it is added to the residual stream.
    """

    def __init__(
        self,
        part: str,
        inner: str,
        projected: str,
        projection: str,
        post: str | None,
        factor: float,
    ) -> None:
        self.part = part
        self.inner = inner
        self.projected = projected
        self.projection = projection
        self.post = post
        self.factor = factor


def output_map(
    nn: Any, split: Split, width: int, projected: Tensor
) -> tuple[Tensor, Tensor, Frozen]:
    """The projection's matrix [in, d_model] and bias [d_model], and the norm behind it.

    Args:
        nn: the nnsight model.
        split: of which layer.
        width: of what enters the projection.
        projected: what left it in this run [example, pos, d_model].
    """
    weight, own = linear_map(nn.get(split.projection), width, projected)
    return weight, own, frozen(None if split.post is None else nn.get(split.post), projected)


def by_head(inner: Tensor, weight: Tensor, heads: int) -> Tensor:
    """What each head makes of its own z [example, pos, head, d_model]."""
    z, matrices = inner.unflatten(-1, (heads, -1)), weight.unflatten(0, (heads, -1))
    return torch.einsum("ephd,hdm->ephm", z, matrices)
