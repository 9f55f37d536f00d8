"""Attention kernels that take no mask of ours: rows are neither packed nor joined for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask
from transformers.integrations import flex_attention as integration

import nnattr
from nnattr import LogitDiff
from nnattr.engine import forward
from tests.methods.common import even_ioi, ragged_ioi, teaching

#: What would have ended the process.
ENDS: list[Any] = []


def not_compiled(
    q: Any, k: Any, v: Any, training: bool, block_mask: Any, scale: float, **_: Any
) -> Any:
    """What torch's kernel computes, and what it must be given: compiled, it ends the process."""
    if not isinstance(block_mask, BlockMask) or block_mask.shape[0] not in (1, len(q)):
        ENDS.append((type(block_mask).__name__, len(q)))  # an error would be caught, an end is not
    dense = create_mask(block_mask.mask_mod, len(q), 1, q.shape[2], k.shape[2], device="cpu")
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=dense, scale=scale, enable_gqa=True
    )


@pytest.mark.parametrize("site", ["z", "resid_pre"])
def test_flex_attention_gets_masks_of_its_own_making(
    monkeypatch: pytest.MonkeyPatch, site: Any
) -> None:
    """To compile it takes a minute, so what it is given is looked at instead."""
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", not_compiled)
    model = nnattr.load("teaching-llama", device="cpu", attn_implementation="flex_attention")
    task = ragged_ioi(model)
    with torch.compiler.set_stance("force_eager"):
        found = nnattr.activation_patching(model, task, LogitDiff(), site=site)
    assert not ENDS
    assert found.provenance.arguments["engine"] == "suffix"
    plain = nnattr.activation_patching(teaching("teaching-llama"), task, LogitDiff(), site=site)
    np.testing.assert_allclose(found.raw, plain.raw, atol=1e-4)


def test_the_usual_kernels_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    model = teaching("teaching-llama")
    used: list[int] = []
    real = forward.packed_inputs
    monkeypatch.setattr(forward, "packed_inputs", lambda *a: used.append(1) or real(*a))
    nnattr.activation_patching(model, even_ioi(model), LogitDiff())
    assert used
