"""What somebody did to a module is part of the model: hooks, adapters, forwards, other classes.

The oracle's hooks come after the user's, as those of a user would who did the same by hand. Every
kind moves some score by far more than rounding: each test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nnattr
from nnattr import LogitDiff, Model, Task, activation_patching, attribution_patching
from nnattr.errors import ArchError
from tests.methods.common import (
    assert_same,
    expected,
    pairs,
    ragged_tiny,
    raw_module,
    tiny,
)
from tests.support.engine import compared
from tests.tiny import tiny_module, tiny_tokenizer

SITES = ("z", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")
#: Tokens of `ragged_tiny`: right and wrong answers.
RIGHT, WRONG = "w70", "w80"


def scaled(module: nn.Module, given: Any, output: Any) -> Any:
    """A hook that makes what a module returns half as large again."""
    return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5


def bent(module: nn.Module, given: Any, output: Any) -> Any:
    """A hook that is not linear."""
    first = output[0] if isinstance(output, tuple) else output
    first = first + first.square().clamp(max=2)
    return (first, *output[1:]) if isinstance(output, tuple) else first


def half_given(module: nn.Module, given: Any) -> Any:
    """A hook on what a module is given: nothing comes through in the second half."""
    keep = torch.ones_like(given[0])
    keep[..., keep.shape[-1] // 2 :] = 0.2
    return (given[0] * keep, *given[1:])


class Bent(nn.Linear):
    """A linear layer by its class alone."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output + output.square().clamp(max=2)


def of_class(module: nn.Module, kind: type) -> None:
    """Make a module one of another class."""
    module.__class__ = kind


def forward_of_its_own(module: nn.Module) -> None:
    """Put another forward in the place of a module's."""
    forward = module.forward
    module.forward = lambda *given, **named: 1.5 * forward(*given, **named)  # type: ignore


def token(word: str) -> int:
    return tiny_tokenizer()(word)["input_ids"][-1]


def banned(module: nn.Module, given: Any, output: Any) -> Any:
    """A hook on the unembedding, or on the model, that shifts some logits, by their tokens."""
    logits = (output if isinstance(output, Tensor) else output.logits).clone()
    for word in (RIGHT, "w71", "w73"):
        logits[..., token(word)] -= 3.0
    if isinstance(output, Tensor):
        return logits
    output.logits = logits
    return output


def grown(module: nn.Module, given: Any) -> None:
    """Writes into what it is given, and returns nothing."""
    given[0].mul_(1.2)


def in_two(layer: Any) -> None:
    layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj, nn.Tanh())


def blocks(module: Any) -> Any:
    return module.model.layers


#: What is done to a Llama's modules, by name. Its output projections in the last layer: that of the
#: middle one is tried in every call.
DONE: dict[str, Callable[[Any], object]] = {
    "output projection scaled": lambda m: blocks(m)[2].self_attn.o_proj.register_forward_hook(
        scaled
    ),
    "output projection bent": lambda m: blocks(m)[2].self_attn.o_proj.register_forward_hook(bent),
    "output projection fed": lambda m: blocks(m)[2].self_attn.o_proj.register_forward_pre_hook(
        half_given
    ),
    "output projection of another class": lambda m: of_class(blocks(m)[2].self_attn.o_proj, Bent),
    "output projection's forward": lambda m: forward_of_its_own(blocks(m)[2].self_attn.o_proj),
    "attention scaled": lambda m: blocks(m)[1].self_attn.register_forward_hook(scaled),
    "MLP bent": lambda m: blocks(m)[1].mlp.register_forward_hook(bent),
    "down-projection scaled": lambda m: blocks(m)[2].mlp.down_proj.register_forward_hook(scaled),
    "layer scaled": lambda m: blocks(m)[1].register_forward_hook(scaled),
    "last layer bent": lambda m: blocks(m)[-1].register_forward_hook(bent),
    "output projections in two": lambda m: [in_two(layer) for layer in blocks(m)],
    "layer fed in place": lambda m: blocks(m)[1].register_forward_pre_hook(grown),
    "layer fed": lambda m: blocks(m)[1].register_forward_pre_hook(half_given),
    "norm fed": lambda m: blocks(m)[1].post_attention_layernorm.register_forward_pre_hook(
        half_given
    ),
    "embedding scaled": lambda m: m.model.embed_tokens.register_forward_hook(scaled),
    "final norm bent": lambda m: m.model.norm.register_forward_hook(bent),
    "unembedding's bias": lambda m: m.lm_head.register_forward_hook(banned),
    "unembedding of another class": lambda m: of_class(m.lm_head, Bent),
    "unembedding's forward": lambda m: forward_of_its_own(m.lm_head),
    "model's bias": lambda m: m.register_forward_hook(banned),
}


def changed(done: str) -> Model:
    module = tiny_module("llama")
    DONE[done](module)
    return nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")


@cache
def plain_scores(site: Any) -> Any:
    model = tiny("llama")
    return activation_patching(model, ragged_tiny(model), LogitDiff(), site=site, normalized=False)


def sites_of(done: str) -> list[Any]:
    """The sites of which the oracle knows: it edits resid_mid in front of attention's end."""
    return [site for site in SITES if (done, site) != ("attention scaled", "resid_mid")]


def baselines(model: Model, task: Task) -> list[float]:
    """The metric of every clean prompt by itself."""
    with torch.no_grad():
        return [float(pair.measure(raw_module(model), pair.source)) for pair in pairs(model, task)]


@pytest.mark.parametrize("engine", ["suffix", "full"])
@pytest.mark.parametrize("done", DONE)
def test_patching_is_that_of_plain_hooks(done: str, engine: Any) -> None:
    model = changed(done)
    task = ragged_tiny(model)
    for site in sites_of(done):
        found = activation_patching(
            model, task, LogitDiff(), site=site, normalized=False, engine=engine
        )
        assert_same(found.raw, expected("activation", model, task, site=site))
        assert_same(found.baselines.sel(run="clean"), baselines(model, task))
    found = activation_patching(model, task, LogitDiff(), normalized=False, engine=engine)
    plain = plain_scores("z")
    moved = abs(found.raw - plain.raw).max() + abs(found.baselines - plain.baselines).max()
    assert float(moved) > 0.05


def test_a_hook_that_writes_into_what_is_differentiated() -> None:
    model = changed("layer fed in place")
    task = ragged_tiny(model)
    with pytest.raises(ArchError, match="writes into an activation"):
        attribution_patching(model, task, LogitDiff(), site="resid_post")
    found = attribution_patching(model, task, LogitDiff(), site="mlp_out", normalized=False)
    assert_same(found.raw, expected("attribution", model, task, site="mlp_out"))


@pytest.mark.parametrize("done", [done for done in DONE if done != "layer fed in place"])
def test_gradients_are_those_of_plain_hooks(done: str) -> None:
    model = changed(done)
    task = ragged_tiny(model)
    for site in sites_of(done):
        found = attribution_patching(model, task, LogitDiff(), site=site, normalized=False)
        assert_same(found.raw, expected("attribution", model, task, site=site))
        assert_same(found.baselines.sel(run="clean"), baselines(model, task))


@pytest.mark.parametrize("done", ["down-projection scaled", "MLP bent", "output projection bent"])
def test_the_engine_gives_what_full_passes_give_inside_modules(done: str) -> None:
    model = changed(done)
    for site in ("neuron", "q", "v"):
        assert compared(model, ragged_tiny(model), site=site)


@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_layers_that_are_skipped_are_not_hooked_twice(layers: Any, monkeypatch: Any) -> None:
    """Rows that enter above a layer whose hook changes what it returns, or the next is given."""
    for done in ("layer scaled", "layer fed", "MLP bent"):
        model = changed(done)
        task = ragged_tiny(model)
        monkeypatch.setattr("nnattr.jobs.split._first_size", lambda *_: 1)  # a job for each layer
        found = activation_patching(model, task, LogitDiff(), normalized=False)
        assert found.provenance.arguments["engine"] == "suffix"
        wanted = expected("activation", model, task)
        assert_same(found.raw[:, layers], wanted[:, layers])
