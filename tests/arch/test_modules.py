"""A norm is known by its class or by the last part of its path, in one way for all."""

from __future__ import annotations

import pytest
import torch

from nnattr.arch.modules import is_norm


class LlamaRMSNorm(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("name", "module", "expected"),
    [
        ("ln_1", torch.nn.Identity(), True),
        ("attn.q_ln", torch.nn.Identity(), True),
        ("scale", torch.nn.LayerNorm(2), True),
        ("first", LlamaRMSNorm(), True),
        ("input_layernorm", torch.nn.Identity(), True),
        ("ln_1.inner", torch.nn.Linear(2, 2), False),
        ("kiln", torch.nn.Linear(2, 2), False),
        ("mlp", torch.nn.Linear(2, 2), False),
    ],
)
def test_is_norm(name: str, module: torch.nn.Module, expected: bool) -> None:
    assert is_norm(name, module) == expected
