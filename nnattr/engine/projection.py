"""What a change of one unit adds behind an output projection, by its part of the weights alone.

A projection that is more than its weights is called, with the unit as it was and as it becomes: it
need not be linear.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import matrix
from nnattr.runs.as_built import call_inside


def projected(
    projection: Any, own: Tensor, example: Tensor, change: Tensor, unit: Tensor, units: int
) -> Tensor:
    """What changes behind the projection, in float32 [row, pos, d].

    Args:
        projection: the module, inside a trace.
        own: its input in the base run [example, pos, units * d_unit].
        example: whose rows they are [row].
        change: of one unit's part of the input, in float32 [row, pos, d_unit].
        unit: which one, in each row.
        units: how many share the input.
    """
    weight = matrix(projection)
    if weight is None:
        return called(projection, own[example], change, unit, units)
    change = change.to(own)
    parts = weight.detach().unflatten(0, (units, -1))
    if change.shape[-1] == 1:  # a neuron
        return (change * parts[unit]).float()
    found = change.new_empty(*change.shape[:2], parts.shape[-1])
    for one in unit.unique():
        rows = unit == one
        found[rows] = change[rows] @ parts[one]
    return found.float()


def called(projection: Any, before: Tensor, change: Tensor, unit: Tensor, units: int) -> Tensor:
    """`projected`, by calling the module on its input [row, pos, width] before and after."""
    after = before.unflatten(-1, (units, -1)).clone()
    rows = torch.arange(len(after), device=after.device)
    after[rows, :, unit] = (after[rows, :, unit].float() + change).to(after)
    new, old = (call_inside(projection, one).float() for one in (after.flatten(-2), before))
    return new - old
