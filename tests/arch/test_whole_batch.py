"""A module whose rows depend on each other cannot be patched row by row: it is refused."""

from __future__ import annotations

import pytest
import torch

import nnattr
from nnattr.errors import ArchError
from tests.tiny import tiny_module, tiny_tokenizer


def test_dynamic_int8_is_refused_for_its_rows_depend_on_each_other() -> None:
    module = torch.ao.quantization.quantize_dynamic(tiny_module("llama"), {torch.nn.Linear})
    with torch.no_grad():
        ids = torch.arange(32).view(2, 16)
        together, alone = module(ids).logits[0], module(ids[:1]).logits[0]
    assert (together - alone).abs().max() > 1e-3 * alone.abs().max()
    with pytest.raises(ArchError, match="depends on the prompts beside it"):
        nnattr.load(module, tokenizer=tiny_tokenizer())
