"""A module goes on changing after it was loaded, and every call answers for what it is by then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.errors import ArchError
from nnattr.tokens import encode
from tests.methods.common import (
    assert_far,
    assert_same,
    expected,
    pairs,
    ragged_tiny,
)
from tests.support.engine import compared
from tests.tiny import tiny_module, tiny_tokenizer

BACKENDS = ("local", "simulated")


def loaded(module: Any, backend: str = "local") -> Model:
    return nnattr.load(module, tokenizer=tiny_tokenizer(), backend=backend)


def patched(model: Model) -> Any:
    task = ragged_tiny(model)
    return nnattr.activation_patching(model, task, LogitDiff(), normalized=False)


def predicted(model: Model, task: Task) -> Tensor:
    """The logits of the best tokens after each clean prompt, by nnattr."""
    return model.predict(task.clean_tokens).logits


def as_plain_hooks_say(model: Model) -> None:
    """Hold one call against the oracle, which knows nothing of what the module was."""
    assert_same(patched(model).raw, expected("activation", model, ragged_tiny(model)))


def flags(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_runs_in_eval_mode_and_gives_the_mode_back(backend: str) -> None:
    module = tiny_module("gpt2", resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3)
    model = loaded(module, backend)
    before = patched(model).raw
    for put in (module.train, module.transformer.h[1].train, module.transformer.drop.train):
        module.eval()
        put()
        mode = flags(module)
        assert any(mode)
        found = patched(model)
        assert_same(found.raw, before)
        assert flags(module) == mode
    module.train()
    task = ragged_tiny(model)
    same = Task.from_pairs(
        task.clean, task.clean, task.answers, task.wrong_answers, tokenizer=model.tokenizer
    )
    itself = nnattr.activation_patching(model, same, LogitDiff(), normalized=False)
    assert not itself.raw.any()
    ids = task.clean_tokens.ids[:1]
    noisy = [module(input_ids=ids).logits for _ in range(2)]
    assert (noisy[0] - noisy[1]).abs().max() > 1e-3  # the control: dropout was on all the while


def test_loading_leaves_the_mode_and_a_failed_call_gives_it_back() -> None:
    module = tiny_module("gpt2").train()
    model = loaded(module)
    assert all(flags(module))
    handle = module.transformer.h[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(nnattr.NnattrError):
        patched(model)
    assert all(flags(module))
    assert list(module.transformer.h[0]._forward_hooks.values()) != []
    handle.remove()
    as_plain_hooks_say(loaded(module.eval()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_that_come_and_go_are_followed(backend: str) -> None:
    module = tiny_module("llama")
    model = loaded(module, backend)
    before = patched(model)
    seen: list[int] = []

    def steer(layer: Any, given: Any, output: Tensor) -> Tensor:
        seen.append(len(output))
        return output * 1.5

    handle = module.model.layers[1].register_forward_hook(steer)
    during = patched(model)
    assert seen
    assert_same(during.raw, expected("activation", model, ragged_tiny(model)))
    assert_far(during.raw, before.raw)
    handle.remove()
    assert_same(patched(model).raw, before.raw)


def test_a_hook_that_asks_for_arguments_by_name_gets_them() -> None:
    module = tiny_module("llama")
    model, seen = loaded(module), []

    def named(part: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.append(sorted(kwargs))

    module.model.layers[1].register_forward_hook(named, with_kwargs=True)
    patched(model)
    assert any("position_embeddings" in one for one in seen)


def test_what_is_captured_is_what_goes_on() -> None:
    """A site holds what the module returned after its hooks: the next layer is given that."""
    module = tiny_module("llama")
    model = loaded(module)
    module.model.layers[0].register_forward_hook(lambda part, given, output: output * 2)
    prompt = ["w3 w4 w5"]
    after = nnattr.capture(model, prompt, "resid_post", layers=[0])["resid_post"]
    then = nnattr.capture(model, prompt, "resid_pre", layers=[1])["resid_pre"]
    assert_same(after, then)
    lens = nnattr.logit_lens(model, prompt, top_k=1)
    best = model.predict(encode(model.tokenizer, prompt), top_k=1)
    assert float(lens.data["probability"][0, -1, 0, 0]) == pytest.approx(
        float((best.logits[0, 0, 0] - best.log_norm[0, 0]).exp()), rel=1e-5
    )


@pytest.mark.parametrize("site", ["rot_q", "rot_k"])
def test_queries_are_read_inside_attention_that_is_hooked(site: Any) -> None:
    """They are read from the source of attention's forward, which runs with the hook."""
    module = tiny_module("llama")
    model, seen = loaded(module), []

    def scale(part: Any, given: Any, output: Any) -> Any:
        seen.append(part)
        return (output[0] * 2, *output[1:])

    before = nnattr.capture(model, ["w3 w4 w5"], site, layers=[2])[site]
    module.model.layers[1].self_attn.register_forward_hook(scale)
    after = nnattr.capture(model, ["w3 w4 w5"], site, layers=[2])[site]
    assert seen
    assert_far(after, before, share=0.01)


def test_new_weights_are_followed() -> None:
    module = tiny_module("llama")
    model = loaded(module)
    before = patched(model).raw
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.mul_(3)
    as_plain_hooks_say(model)
    assert_far(patched(model).raw, before)
    module.model.layers[1].self_attn.o_proj.weight = nn.Parameter(
        2 * module.model.layers[1].self_attn.o_proj.weight
    )
    as_plain_hooks_say(model)


def test_a_forward_that_is_replaced_later_is_followed() -> None:
    module = tiny_module("llama")
    model = loaded(module)
    before = patched(model).raw
    for part in (module.model.layers[1].self_attn.o_proj, module.lm_head, module.model.layers[0]):
        old = part.forward
        part.forward = lambda *given, old=old, **named: 1.5 * old(*given, **named)
        as_plain_hooks_say(model)
        assert_far(patched(model).raw, before, share=0.01)
        as_plain_hooks_say(loaded(module))  # and where it is loaded anew
        part.forward = old
        assert_same(patched(model).raw, before)


def swapped(module: Any) -> None:
    new = nn.Linear(64, 48, bias=False)
    module.model.layers[1].self_attn.o_proj = new


@pytest.mark.parametrize(
    "rebuild",
    [
        swapped,
        lambda module: setattr(module.model, "layers", module.model.layers[:2]),
        lambda module: module.model.layers.__delitem__(0),
        lambda module: setattr(module.model, "layers", module.model.layers[::-1]),
        lambda module: setattr(module, "lm_head", nn.Linear(48, 96)),
        lambda module: module.resize_token_embeddings(104),
        lambda module: module.model.layers[1].mlp.add_module("more", nn.Linear(2, 2)),
    ],
)
def test_a_module_that_was_rebuilt_is_refused(rebuild: Any) -> None:
    module = tiny_module("llama")
    model = loaded(module)
    patched(model)
    rebuild(module)
    with pytest.raises(ArchError, match=r"rebuilt after nnattr.load.*Load the module again"):
        patched(model)


def test_adapters_are_followed_when_switched_and_refused_when_put_in_later() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    module = tiny_module("llama")
    early = loaded(module)
    patched(early)
    targets = ["q_proj", "o_proj", "down_proj", "lm_head"]
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(module, config).eval()
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.3)
    with pytest.raises(ArchError, match="rebuilt"):
        patched(early)
    model = loaded(adapted)
    task = ragged_tiny(model)
    found = {}
    for state in ("on", "off"):
        with torch.no_grad():
            raw = [float(p.measure(adapted, p.source)) for p in pairs(model, task)]
        got = patched(model)
        assert_same(got.baselines.sel(run="clean"), raw)
        assert compared(model, task) == "suffix"
        found[state] = got.raw
        adapted.base_model.disable_adapter_layers()
    assert_far(found["on"], found["off"])
