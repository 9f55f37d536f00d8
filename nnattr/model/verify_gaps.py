"""How far what a model does is from what its spec promises, relative to the largest value.

Everything here travels: torch and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: For each site, in forward order, its place in every layer.
Places = dict[str, list[tuple[Any, ...]]]


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest expected value; infinite if shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def worst(gaps: Any) -> float:
    """The largest gap; not a number if any is (``max`` would drop it)."""
    values = list(gaps.values() if isinstance(gaps, dict) else gaps)
    return float(torch.tensor(values, dtype=torch.float64).max()) if values else 0.0


def stream_gaps(values: dict[str, Tensor], scale: float) -> dict[str, float]:
    """The residual stream as a sum: gaps of its equations, by the site each should give."""
    pre, attn, mlp = values["resid_pre"], values["attn_out"], values.get("mlp_out")
    if mlp is None:  # layers that are attention alone
        return {"resid_post": gap(pre + scale * attn, values["resid_post"])}
    if "resid_mid" not in values:
        return {"resid_post": gap(pre + scale * (attn + mlp), values["resid_post"])}
    mid = values["resid_mid"]
    return {
        "resid_mid": gap(pre + scale * attn, mid),
        "resid_post": gap(mid + scale * mlp, values["resid_post"]),
    }
