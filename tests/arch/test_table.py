"""Every row of the table, proven on a tiny random model of its family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from nnattr.arch.table import ROWS, lookup
from nnattr.model.load import load
from nnattr.model.verify import verify
from tests.tiny import (
    CONFIGS,
    D_HEAD,
    D_MODEL,
    FAMILIES,
    HEADS,
    tiny_model,
    tiny_module,
    tiny_tokenizer,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_proven(family: str) -> None:
    proof = verify(tiny_model(family))
    assert proof.passed, str(proof)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "falcon", "gemma2", "granite"])
def test_proof_travels(family: str) -> None:
    here = verify(tiny_model(family))
    rehearsed = verify(tiny_model(family, backend="simulated"))
    assert rehearsed == here


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_low_precision_is_proven(family: str, dtype: torch.dtype) -> None:
    proof = verify(load(tiny_module(family).to(dtype), tokenizer=tiny_tokenizer()))
    assert proof.passed, str(proof)


def test_every_row_has_a_tiny_model_and_there_are_enough() -> None:
    assert {model_type for model_type, _ in CONFIGS.values()} == set(ROWS)
    assert len(ROWS) >= 24


@pytest.mark.parametrize("family", ["gemma", "gemma2", "qwen3", "llama"])
def test_d_head_comes_from_the_module(family: str) -> None:
    """A head can be wider than d_model / n_heads: the tiny models are built so that it shows."""
    model = tiny_model(family)
    projection = model.nn._module.get_submodule(model.places("z")[0][0])
    assert projection.in_features == HEADS * D_HEAD != D_MODEL
    shape = next(check for check in verify(model).checks if check.name == "z is heads x d_head")
    assert f"{HEADS} heads x {D_HEAD}" in shape.detail


@pytest.mark.parametrize(
    ("model_type", "flags"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("opt", {"word_embed_proj_dim": 16}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("bloom", {"slow_but_exact": True}),
        ("mamba", {}),
    ],
)
def test_no_row_for_layouts_that_the_row_does_not_describe(
    model_type: str, flags: dict[str, Any]
) -> None:
    assert lookup(AutoConfig.for_model(model_type, **flags)) is None


def test_a_flag_of_the_configuration_decides_the_layout() -> None:
    parallel = lookup(AutoConfig.for_model("gpt_neox", use_parallel_residual=True))
    serial = lookup(AutoConfig.for_model("gpt_neox", use_parallel_residual=False))
    assert parallel is not None
    assert parallel.parallel
    assert serial is not None
    assert not serial.parallel
