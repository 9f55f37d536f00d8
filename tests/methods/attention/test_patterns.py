"""Patterns inside a job: those of `output_attentions`, proven, and the model left as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnattr import Model
from nnattr.errors import ArchError, BackendError
from nnattr.model.patterns import attention_paths
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import NO_NUMBERS
from nnattr.runs.patterns import flaw, go_back, go_eager, patterns
from nnattr.runs.places import read
from nnattr.runs.portions import answered
from nnattr.tokens import encode
from tests.methods.common import raw_module, tiny
from tests.oracles import attention
from tests.tiny import FAMILIES, HEADS, LAYERS, tiny_model

PROMPTS = ["w3 w4 w5 w6 w7 w8 w9", "w33 w34 w35", "w40 w41 w42 w43 w44 w45"]


def job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    prompts = PromptBatch(**payload["prompts"])
    return answered(wanted, nn, prompts, payload)


def wanted(nn: Any, prompts: PromptBatch, payload: dict[str, Any]) -> dict[str, Any]:
    found = patterns(nn, prompts, payload["paths"], payload["heads"])
    return {"patterns": [one.cpu() for one in found]}


def ask(model: Model, prompts: list[str], **changes: Any) -> list[torch.Tensor]:
    tokens = encode(model.tokenizer, prompts)
    payload = {
        "prompts": {"ids": tokens.ids, "mask": tokens.mask},
        "paths": attention_paths(model),
        "heads": None,
        **changes,
    }
    return model.run(job, payload, label="patterns").values["patterns"]


#: Their eager attention is another model (see `nnattr.runs.patterns`).
UNEQUAL = ("falcon-serial",)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in UNEQUAL])
def test_they_are_the_models_own(family: str) -> None:
    model = tiny(family)
    module = raw_module(model)
    before = module.config._attn_implementation
    found = torch.stack(ask(model, PROMPTS), 1)
    assert module.config._attn_implementation == before
    assert found.shape == (3, model.n_layers, HEADS, 7, 7)
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        pad = 7 - ids.shape[1]
        expected = attention.patterns(module, ids)
        assert expected.std(1).max() > 1e-3, "all heads look alike: nothing to compare"
        torch.testing.assert_close(found[i, :, :, pad:, pad:], expected, rtol=0, atol=1e-5)
        assert not found[i, :, :, :pad].any()
        assert not found[i, :, :, :, :pad].any()


@pytest.mark.parametrize("family", UNEQUAL)
def test_an_implementation_that_is_another_model_is_refused(family: str) -> None:
    with pytest.raises(ArchError, match="makes other predictions"):
        ask(tiny(family), PROMPTS)
    model = tiny_model(family)
    raw_module(model).config._attn_implementation = "eager"  # as `load` would be asked to
    found = torch.stack(ask(model, PROMPTS[:1]), 1)[0]
    ids = torch.tensor([model.tokenizer(PROMPTS[0])["input_ids"]])
    torch.testing.assert_close(found, attention.patterns(raw_module(model), ids))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neo"])
def test_a_simulated_server_gives_the_same(family: str) -> None:
    here, there = ask(tiny(family), PROMPTS), ask(tiny_model(family, backend="simulated"), PROMPTS)
    assert len(here) == len(there)
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left, right)


def test_chosen_heads_are_those_of_all() -> None:
    model = tiny("llama")
    every = ask(model, PROMPTS)
    first, last = ask(model, PROMPTS, heads=[[3, 1], [], [0]])
    assert torch.equal(first, every[0][:, [3, 1]])
    assert torch.equal(last, every[2][:, [0]])


def test_bfloat16_passes_the_same_check() -> None:
    model = tiny_model("llama")
    raw_module(model).to(torch.bfloat16)
    found = ask(model, PROMPTS)
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0].float(), ask(tiny("llama"), PROMPTS)[0], rtol=0, atol=0.02)


def failing_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    broken = PromptBatch(payload["prompts"]["ids"] + 10_000, payload["prompts"]["mask"])
    patterns(nn, broken, payload["paths"])
    return {}


def test_a_pass_that_fails_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    tokens = encode(model.tokenizer, PROMPTS)
    payload = {
        "prompts": {"ids": tokens.ids, "mask": tokens.mask},
        "paths": attention_paths(model),
    }
    with pytest.raises(BackendError, match="out of range"):
        model.run(failing_job, payload, label="patterns")
    assert raw_module(model).config._attn_implementation == "sdpa"


def test_each_configuration_gets_its_own_back() -> None:
    class Config:
        sub_configs = ("text", "vision")

        def __init__(self, implementation: str | None, **inside: Any) -> None:
            self.__dict__.update(inside)
            self.set = implementation

        @property
        def _attn_implementation(self) -> str | None:
            return self.set

        @_attn_implementation.setter
        def _attn_implementation(self, value: Any) -> None:  # as transformers does it
            self.set = value.get("", self.set) if isinstance(value, dict) else value
            for name in self.sub_configs:
                if isinstance(value, str) and hasattr(self, name):
                    getattr(self, name)._attn_implementation = value

    text, vision = Config("sdpa"), Config(None)
    whole = Config("flash_attention_2", text=text, vision=vision)
    parts = [SimpleNamespace(config=text), SimpleNamespace(), SimpleNamespace(config=whole)]
    nn: Any = SimpleNamespace(_module=SimpleNamespace(modules=lambda: iter(parts)))
    before = go_eager(nn)
    assert [one.set for one in (whole, text, vision)] == ["eager"] * 3
    go_back(before)
    assert [one.set for one in (whole, text, vision)] == ["flash_attention_2", "sdpa", None]


def test_what_is_no_pattern_is_refused() -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, :2] = False
    good = torch.rand(2, 3, 5, 5) * (mask[:, None, None] & torch.ones(5, 5).tril().bool())
    good = good / good.sum(-1, keepdim=True)
    good[1, :, :2] = 0.2  # rows of padding say nothing
    assert flaw(good, mask, "a") is None
    leaky, scores, padded = good.clone(), good.clone(), good.clone()
    leaky[0, 1, 2] = torch.tensor([0.2, 0.2, 0.3, 0.3, 0])
    scores[0, 0, 3, 1] += 0.1
    padded[1, 2, 4] = torch.tensor([0.3, 0, 0.3, 0.4, 0])
    for bad in (leaky, scores, padded):
        kind, reason = flaw(bad, mask, "a") or ("", "")
        assert kind == "arch"
        assert "not a causal attention pattern" in reason
    assert flaw(torch.full_like(good, float("nan")), mask, "a") == ("backend", NO_NUMBERS)
    assert "is [2, head, 5, 5]" in (flaw(good[:, :, :4], mask, "a") or ("", ""))[1]


def test_a_module_that_returns_none_is_named() -> None:
    model = tiny("llama")
    wrong = [[path[0].replace("self_attn", "mlp")] for path in attention_paths(model)]
    with pytest.raises(BackendError, match=r"layers\.0\.mlp returned no attention probabilities"):
        ask(model, PROMPTS, paths=wrong)
    assert len(wrong) == LAYERS


def both_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Patterns, and v and z of a pass of the model as it is."""
    prompts = PromptBatch(**payload["prompts"])
    found = patterns(nn, prompts, payload["paths"])
    v, z = [], []
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            for values, heads in zip(payload["v"], payload["z"], strict=True):
                v.append(read(nn, values, prompts.width).clone())
                z.append(read(nn, heads, prompts.width).clone())
    return {"patterns": found, "v": v, "z": z}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in UNEQUAL])
def test_they_are_what_gathers_the_values(family: str) -> None:
    """z is the pattern's sum of v: what is read as a pattern is what the model used as one."""
    model = tiny(family)
    tokens = encode(model.tokenizer, PROMPTS)
    payload = {
        "prompts": {"ids": tokens.ids, "mask": tokens.mask},
        "paths": attention_paths(model),
        "v": model.places("v"),
        "z": model.places("z"),
    }
    values = model.run(both_job, payload, label="z").values
    shared = model.n_heads // model.n_kv_heads
    for pattern, v, z in zip(values["patterns"], values["v"], values["z"], strict=True):
        own = v.unflatten(-1, (model.n_kv_heads, -1)).repeat_interleave(shared, 2)
        gathered = torch.einsum("ehqk,ekhd->eqhd", pattern, own).flatten(-2)
        close = {"rtol": 0, "atol": 1e-5 * float(z.abs().max())}
        torch.testing.assert_close(gathered[tokens.mask], z[tokens.mask], **close)
