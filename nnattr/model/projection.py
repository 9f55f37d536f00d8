"""Products with a part of a projection's weights, where the rest would be thrown away.

`projected` is what a change of one unit adds behind an output projection; `last_queries` lets a
layer make queries for the tokens that are still needed, and keys and values for all.

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


def last_queries(projection: Any, part: tuple[int, int, int] | None, tokens: int) -> None:
    """Make queries for every ``tokens``-th token alone, inside a trace; others become zero.

    ``part`` says which part of the output they are, where keys and values come from the same module
    (see `nnattr.arch.spec.Place`; they come first).
    """
    x, ends = projection.input, slice(tokens - 1, None, tokens)
    if part is None:
        some = projection(x[:, ends])
        found = some.new_zeros(*x.shape[:2], some.shape[-1])
        found[:, ends] = some
        projection.skip(found)
        return
    weight, bias = matrix(projection), getattr(projection._module, "bias", None)
    if weight is None:
        return
    groups, _, last = part
    found = x.new_zeros(*x.shape[:2], groups, weight.shape[-1] // groups)
    for where, columns in ((ends, slice(last)), (slice(None), slice(last, None))):
        some = weight.unflatten(-1, (groups, -1))[..., columns]
        made = x[:, where] @ some.flatten(-2)
        if bias is not None:
            made += bias.unflatten(-1, (groups, -1))[:, columns].flatten()
        found[:, where, :, columns] = made.unflatten(-1, (groups, -1))
    projection.skip(found.flatten(-2))
