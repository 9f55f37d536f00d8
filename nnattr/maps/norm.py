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


class Frozen:
    """A norm as a linear map; made by `frozen`.

    Attributes:
        gain, bias: [d_model].
        centred: whether the mean is taken away.
        scale: one number for each token [..., 1].
        gap: of the fit, the largest error relative to the largest value [...].
    """

    def __init__(
        self, gain: Tensor, bias: Tensor, centred: bool, scale: Tensor, gap: Tensor
    ) -> None:
        self.gain = gain
        self.bias = bias
        self.centred = centred
        self.scale = scale
        self.gap = gap


def frozen(norm: Any, x: Tensor) -> Frozen:
    """The linear map that ``norm`` is at ``x`` [..., d_model]; None is the identity."""
    width = x.shape[-1]
    if norm is None:
        flat = torch.ones(width, device=x.device)
        one = torch.ones_like(x[..., :1], dtype=torch.float32)
        return Frozen(flat, 0 * flat, False, one, 0 * one[..., 0])
    swing = torch.ones(width, device=x.device)
    swing[1::2] = -1
    if width % 2:
        swing[-2] = -2  # the mean must be zero
    probes = torch.stack([torch.zeros_like(swing), swing, torch.ones_like(swing)])
    probes = probes.view(3, *(1 for _ in x.shape[1:-1]), width)  # a norm may have heads in between
    made = norm(probes.to(x.dtype)).float()
    bias, swung, level = made if x.ndim == 2 else made[:, 0]
    gain = (swung - bias) / swing
    centred = bool((level - bias).norm() < 0.1 * (swung - bias).norm())
    target = norm(x).float() - bias
    shape = gain * without_mean(x.float(), centred)
    scale = (shape * target).sum(-1, keepdim=True) / (shape * shape).sum(-1, keepdim=True)
    scale = scale.nan_to_num()  # of nothing, as attention makes of padding, any number does
    error = (scale * shape - target).abs().amax(-1) / target.abs().amax(-1)
    return Frozen(gain, bias, centred, scale, error)


def apply(norm: Frozen, x: Tensor) -> Tensor:
    """What the frozen map makes of a part ``x``; the bias belongs to no part."""
    return norm.scale * norm.gain * without_mean(x, norm.centred)


def transpose(norm: Frozen, direction: Tensor) -> Tensor:
    """The transposed map: the direction before the norm that reads what this one reads after it."""
    return norm.scale * without_mean(norm.gain * direction, norm.centred)


def per_unit(norm: Frozen) -> Frozen:
    """The same map for vectors with one more axis in front of d_model."""
    return Frozen(norm.gain, norm.bias, norm.centred, norm.scale[..., None, :], norm.gap)


def without_mean(x: Tensor, centred: bool) -> Tensor:
    """``x`` [..., d_model] without its mean, if the norm takes that away."""
    return x - x.mean(-1, keepdim=True) if centred else x
