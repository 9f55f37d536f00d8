r"""A norm as the linear map that it is once its statistics are held fixed.

LayerNorm, RMSNorm and their kin have the form

.. math:: f(x) = \gamma \odot Cx \, / \, s(x) + \beta

where :math:`C` takes away the mean or nothing, and :math:`s(x)` is one number per token. With
:math:`s` frozen at the run's value this is a linear map, and what it does to a sum is the sum of
what it does to the parts.

The map is found by asking the module itself, so it needs no formula and no weights:
:math:`\beta` is what zero becomes, :math:`\gamma` is read off a vector of alternating signs,
:math:`C` shows in what a constant vector becomes, and :math:`s` is fitted to the run. The ``gap``
of the fit is the proof: a module of another form does not fit. Here everything travels: torch and
plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Frozen = dict[str, Any]


def frozen(norm: Any, x: Tensor) -> Frozen:
    """The linear map that ``norm`` is at ``x`` [..., d_model]; None is the identity.

    Returns:
        ``gain`` and ``bias`` [d_model], ``centred``, ``scale`` [..., 1], and the fit's ``gap``
        [...], the largest error relative to the largest value.
    """
    width = x.shape[-1]
    if norm is None:
        flat = torch.ones(width, device=x.device)
        one = torch.ones_like(x[..., :1], dtype=torch.float32)
        return {
            "gain": flat,
            "bias": 0 * flat,
            "centred": False,
            "scale": one,
            "gap": 0 * one[..., 0],
        }
    swing = torch.ones(width, device=x.device)
    swing[1::2] = -1
    if width % 2:
        swing[-2] = -2  # the mean must be zero
    asked = torch.stack([torch.zeros_like(swing), swing, torch.ones_like(swing)])
    bias, swung, level = norm(asked[None].to(x.dtype))[0].float()
    found: Frozen = {"gain": (swung - bias) / swing, "bias": bias}
    found["centred"] = bool((level - bias).norm() < 0.1 * (swung - bias).norm())
    target = norm(x).float() - bias
    shape = apply({**found, "scale": 1.0}, x.float())
    scale = (shape * target).sum(-1, keepdim=True) / (shape * shape).sum(-1, keepdim=True)
    error = (scale * shape - target).abs().amax(-1) / target.abs().amax(-1)
    return {**found, "scale": scale, "gap": error}


def apply(norm: Frozen, x: Tensor) -> Tensor:
    """What the frozen map makes of a part ``x``; the bias belongs to no part."""
    return norm["scale"] * norm["gain"] * _centred(norm, x)


def pull(norm: Frozen, direction: Tensor) -> Tensor:
    """The transposed map: the direction before the norm that reads what this one reads after it."""
    return norm["scale"] * _centred(norm, norm["gain"] * direction)


def per_unit(norm: Frozen) -> Frozen:
    """The same map for vectors with one more axis in front of d_model."""
    return {**norm, "scale": norm["scale"][..., None, :]}


def _centred(norm: Frozen, x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True) if norm["centred"] else x
