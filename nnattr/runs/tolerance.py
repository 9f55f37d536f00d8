"""How close two ways to compute the same thing must be, to count as the same.

Two kinds of comparison are made inside jobs. Two *passes* of a model (one from a cache, one with
another attention kernel) add up rounding errors over all layers, so what is allowed does not depend
on a number of steps: a ten-thousandth of the largest value in float32, a tenth in half precision.
Two *expressions* of one quantity (a sum that must be one, a product written out) may be off by a
few roundings of their dtype.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: What is allowed in float32, as a share of the largest value.
SINGLE = 1e-4
#: What is allowed between two passes in half precision.
HALF = 0.1


def pass_tolerance(value: Tensor) -> float:
    """How far apart two passes may be in such values, as a share of the largest."""
    return SINGLE if torch.finfo(value.dtype).eps < 1e-6 else HALF


def rounding_tolerance(dtype: torch.dtype, steps: int) -> float:
    """How far apart two expressions may be that differ by so many roundings, as a share."""
    return max(SINGLE, steps * torch.finfo(dtype).eps)


def structure_tolerance(dtype: torch.dtype) -> float:
    """How far what a site holds may be from what the model's structure says, as a share."""
    return max(1e-5, 4 * torch.finfo(dtype).eps)


def pattern_tolerance(dtype: torch.dtype) -> float:
    """How far a row of an attention pattern may be from a sum of one over the past."""
    return rounding_tolerance(dtype, 4)


def scores_tolerance(dtype: torch.dtype) -> float:
    """How far a pattern may be from the softmax of queries times keys."""
    return rounding_tolerance(dtype, 8)


def weights_tolerance(dtype: torch.dtype) -> float:
    """How far what a model computes may be from a product of its weights, or a sum of parts."""
    return rounding_tolerance(dtype, 16)


def attention_tolerance(dtype: torch.dtype) -> float:
    """The same behind a softmax over scores that were themselves summed up from parts."""
    return max(1e-3, 16 * torch.finfo(dtype).eps)


def same_logits(found: Tensor, expected: Tensor) -> bool:
    """Whether two passes gave the same logits."""
    gap = (found.float() - expected.float()).abs().max()
    return bool(gap <= pass_tolerance(expected) * expected.abs().max())
