"""What gradients at a site say of every cell: gradient times change, summed over the cell.

Keys that go through the softmax are another matter: `nnattr.engine.qk_fix`. Inside a job: torch and
plain values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnattr.engine.qk_fix import Keys, through_softmax


class Moved:
    """How the site moves from the base run to the source run, at the positions of both runs.

    Attributes:
        own: the site in the base run, by layer [example, pos, width].
        other: what is patched in, likewise.
        spots: which positions each spot has [spot, example, pos].
        units: how many parts of a layer's site are patched apart.
        factor: what gradients are multiplied with.
        keys: by layer what keys do to the softmax, where they are patched and go through it.
    """

    def __init__(
        self,
        *,
        own: list[Tensor],
        other: list[Tensor],
        spots: Tensor,
        units: int,
        factor: float = 1.0,
        keys: list[Keys] | None = None,
    ) -> None:
        self.own = own
        self.other = other
        self.spots = spots
        self.units = units
        self.factor = factor
        self.keys = keys


def contributions(moved: Moved, slopes: list[Tensor]) -> Tensor:
    """The estimated change of every cell [example, layer, unit, spot], on the processor."""
    found = [contribution(moved, layer, slope).cpu() for layer, slope in enumerate(slopes)]
    return torch.stack(found, 1)


def contribution(moved: Moved, layer: int, slope: Tensor) -> Tensor:
    """The same for one layer [example, unit, spot], in float32."""
    if moved.keys is not None:
        return through_softmax(moved.keys[layer], slope)
    change = moved.other[layer].float() - moved.own[layer].float()
    product = moved.factor * (slope.float() * change)
    product = product.unflatten(-1, (moved.units, -1)).sum(-1)
    where = moved.spots.to(product.device).float()
    return (product[None] * where[..., None]).sum(2).permute(1, 2, 0)
