"""Adapters of PEFT's, each kind by itself: patched, estimated and generated as they run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task
from tests.methods.common import assert_same, expected, ragged_tiny
from tests.tiny import tiny_module, tiny_tokenizer

peft = pytest.importorskip("peft")
GENERATES = "CAUSAL_LM"

#: What is put on a Llama.
KINDS: dict[str, Callable[[], Any]] = {
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "DoRA": lambda: peft.LoraConfig(use_dora=True, target_modules=["o_proj", "v_proj"]),
    "VeRA": lambda: peft.VeraConfig(target_modules=["o_proj"], r=4),
    "OFT": lambda: peft.OFTConfig(target_modules=["o_proj"], oft_block_size=8, r=0),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "an embedding": lambda: peft.LoraConfig(target_modules=["embed_tokens", "o_proj"]),
    "some tokens": lambda: peft.LoraConfig(
        target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [33, 70, 80]}
    ),
    "an unembedding of its own": lambda: peft.LoraConfig(
        target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
    "a prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
}


class Inside:
    """An adapted model with the paths of the one inside of it, as the oracle looks for them."""

    def __init__(self, adapted: Any) -> None:
        self._adapted, self._base = adapted, adapted.get_base_model()

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._adapted(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


def adapted(kind: str) -> Any:
    config = KINDS[kind]()
    config.task_type = GENERATES
    module = peft.get_peft_model(tiny_module("llama"), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def plain(module: Any) -> Any:
    """What the oracle asks of a `Model`."""
    return SimpleNamespace(
        nn=SimpleNamespace(_module=Inside(module)), tokenizer=tiny_tokenizer(), n_heads=4
    )


def likeliest(module: Any, task: Task, count: int) -> list[str]:
    """The first prompt's continuation, token by token without a cache."""
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer(task.clean[0])["input_ids"]])
    width = ids.shape[1]
    for _ in range(count):
        with torch.no_grad():
            best = module(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, best], 1)
        if best == tokenizer.eos_token_id:
            break
    return [tokenizer.decode(ids[0, width:], skip_special_tokens=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_models_numbers_are_its_own(kind: str) -> None:
    module = adapted(kind)
    model: Model = nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")
    task, own = ragged_tiny(model), plain(module)
    for site in ("z", "resid_pre"):
        found = nnattr.activation_patching(model, task, LogitDiff(), site=site, normalized=False)
        assert_same(found.raw, expected("activation", own, task, site=site))
    found = nnattr.attribution_patching(model, task, LogitDiff(), normalized=False)
    assert_same(found.raw, expected("attribution", own, task))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a prefix"])
def test_an_adapted_model_generates(kind: str) -> None:
    """An adapter is not run then, but what is inside of it."""
    module = adapted(kind)
    model = nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")
    task = ragged_tiny(model)
    found = nnattr.generate(model, task.clean[0], max_new_tokens=4)
    assert [text.strip() for text in found] == likeliest(module, task, 4)
