"""What a change of one unit adds behind an output projection, by its part of the weights alone.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def in_out(projection: Any) -> Tensor:
    """The weights of a linear module or a Conv1D, as nnsight gives it, as [in, out]."""
    kinds = type(projection._module).__mro__
    turned = any(kind.__name__ == "Conv1D" for kind in kinds)
    return projection.weight if turned else projection.weight.T


def matrix(projection: Any) -> Tensor | None:
    """The weights [in, out] of a plain linear map, where they are at hand and all that it does.

    They are not in a sandbox, where modules are kept on disk, and where others stand in for them
    (quantized, adapted, parametrized).
    """
    weight = getattr(projection, "weight", None)
    if weight is None or weight.is_meta:
        return None
    kind = type(projection._module)
    plain = kind is torch.nn.Linear or kind.__name__ == "Conv1D"
    return in_out(projection) if plain else None


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
