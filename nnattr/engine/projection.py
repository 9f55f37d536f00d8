"""What a change of one unit adds behind an output projection, by its part of the weights alone.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import matrix


def projected(projection: Any, change: Tensor, unit: Tensor, units: int) -> Tensor:
    """What changes behind the projection, in float32 [row, pos, d].

    Args:
        projection: the module, inside a trace.
        change: of one unit's part of its input [row, pos, d_unit].
        unit: which one, in each row.
        units: how many share the input.
    """
    weight = matrix(projection)
    if weight is None:
        return called(projection, change, unit, units)
    parts = weight.detach().unflatten(0, (units, -1))
    if change.shape[-1] == 1:  # a neuron
        return (change * parts[unit]).float()
    found = change.new_empty(*change.shape[:2], parts.shape[-1])
    for one in unit.unique():
        rows = unit == one
        found[rows] = change[rows] @ parts[one]
    return found.float()


def called(projection: Any, change: Tensor, unit: Tensor, units: int) -> Tensor:
    """`projected`, by calling the module on inputs that are zero elsewhere."""
    given = change.new_zeros(*change.shape[:2], units, change.shape[-1])
    given[torch.arange(len(given), device=given.device), :, unit] = change
    given = given.flatten(-2)
    nothing = projection(torch.zeros_like(given[:1, :1]))  # the bias, if it has one
    return projection(given).float() - nothing.float()
