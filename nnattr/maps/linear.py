"""What a linear module does to a vector, as a matrix: from its weights, or by probing it.

A sandboxed server runs the job in a process that holds no weights; modules can be called there (the
call goes to where the weights are), but their parameters are empty. And a module may do more than
its weights say (quantized, adapted, parametrized, with a hook or a forward of somebody's own). Then
the matrix is what the module makes of unit vectors.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.runs.as_built import as_built, call_inside
from nnattr.runs.places import raw
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import weights_tolerance

#: Unit vectors that are probed with at a time.
PROBES = 512
#: Their length: large against a bias, so that taking the bias away loses no digits.
LENGTH = 256.0


def in_out(projection: Any) -> Tensor:
    """The weights of a linear module or a Conv1D, as nnsight gives it, as [in, out]."""
    kinds = type(raw(projection)).__mro__
    turned = any(kind.__name__ == "Conv1D" for kind in kinds)
    return projection.weight if turned else projection.weight.T


def matrix(projection: Any) -> Tensor | None:
    """The weights [in, out] of a plain linear map, where they are at hand and all that it does.

    They are not in a sandbox, where modules are kept on disk, where others stand in for them
    (quantized, adapted, parametrized, subclasses), and where the module has hooks or another
    forward.
    """
    module = raw(projection)
    kind = type(module)
    conv = (kind.__name__, kind.__module__) == ("Conv1D", "transformers.pytorch_utils")
    if not (kind is torch.nn.Linear or conv) or not as_built(module):
        return None
    plain = type(module.weight) in (Tensor, torch.nn.Parameter)  # and no kind of quantized tensor
    return in_out(projection) if plain and not module.weight.is_meta else None


def linear_map(
    module: Any, width: int, like: Tensor, columns: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The matrix [in, out] and the bias [out] of a linear module, in float32.

    Of what enters it, behind its users' hooks on its input.

    Args:
        module: a linear module or a Conv1D, as nnsight gives it.
        width: the size of its input.
        like: a tensor with the dtype and device that the module works in.
        columns: the outputs that are wanted; by default all.
    """
    weight = matrix(module)
    if weight is None:
        return by_probing(module, width, like, columns)
    bias = getattr(raw(module), "bias", None)
    bias = torch.zeros_like(weight[0]) if bias is None else bias
    if columns is not None:
        there = columns.to(weight.device)
        weight, bias = weight[:, there], bias[there]
    return weight.to(like.device).float(), bias.to(like.device).float()


def by_probing(
    module: Any, width: int, like: Tensor, columns: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_map`, from what the module makes of zero and of unit vectors.

    Raises:
        RefusedError: that is not what it makes of another vector: it is not linear.
    """
    units = LENGTH * torch.eye(width, device=like.device, dtype=like.dtype)
    everything = slice(None) if columns is None else columns.to(like.device)
    nothing = torch.zeros_like(units[:1])
    bias, *rows = (
        call_inside(module, part[None])[0][:, everything].float()
        for part in (nothing, *units.split(PROBES))
    )
    weight = torch.cat([row - bias for row in rows]) / LENGTH
    other = torch.arange(1, width + 1, device=like.device).sin().to(like.dtype)
    made = call_inside(module, other[None, None])[0, :, everything].float()
    gap = float((other.float() @ weight + bias - made).abs().max() / made.abs().max())
    if not gap <= weights_tolerance(like.dtype):
        raise RefusedError(
            "arch",
            f"a module that should be linear ({type(raw(module)).__name__}, or what "
            "somebody's hook or forward makes of it) is not: a sum of its parts is off by "
            f"{gap:.1e} of its size. It has no matrix; activation_patching needs none.",
        )
    return weight, bias[0]
