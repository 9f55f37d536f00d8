"""Weights that were rounded are run as they are: by torchao, by bitsandbytes.

Run where these are installed. They are not in the dev extra: transformers imports them in every
process, which takes seconds, and torchao says on the way which of its kernels it cannot load.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import nnattr
from nnattr import LogitDiff
from nnattr.errors import ArchError
from tests.methods.common import assert_far, assert_same, expected, ragged_tiny
from tests.tiny import tiny_module, tiny_tokenizer


def by_torchao(config: str) -> Callable[[Path], Any]:
    def made(folder: Path) -> Any:
        torchao = pytest.importorskip("torchao.quantization")
        module = tiny_module("llama", hidden_size=64)
        torchao.quantize_(module, getattr(torchao, config)())
        return module

    return made


def in_four_bits(folder: Path) -> Any:
    """Loaded as people load it: the library's modules in the place of the linear ones."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_module("llama", hidden_size=64).save_pretrained(folder)
    rounded = BitsAndBytesConfig(load_in_4bit=True)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=rounded, device_map="cpu"
    )


MADE = {
    "torchao, int8 weights": by_torchao("Int8WeightOnlyConfig"),
    "torchao, dynamic int8": by_torchao("Int8DynamicActivationInt8WeightConfig"),
    "bitsandbytes, four bits": in_four_bits,
}


@pytest.mark.parametrize("how", MADE)
def test_rounded_weights_are_run_as_they_are(how: str, tmp_path: Path) -> None:
    module = MADE[how](tmp_path)
    assert any(type(part) is not nn.Linear for part in module.modules() if "Linear" in str(part))
    model = nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")
    float_module = tiny_module("llama", hidden_size=64)
    plain = nnattr.load(float_module, tokenizer=tiny_tokenizer(), backend="local")
    task = ragged_tiny(model)
    found = nnattr.activation_patching(model, task, LogitDiff(), normalized=False)
    assert_same(found.raw, expected("activation", model, task), 1e-4)
    assert_far(found.raw, expected("activation", plain, task), 1e-3)
    slopes = None
    with suppress(ArchError):  # a kernel that passes no gradient on is refused
        slopes = nnattr.attribution_patching(model, task, LogitDiff(), normalized=False)
    if slopes is not None:
        assert_same(slopes.raw, expected("attribution", model, task), 1e-4)
