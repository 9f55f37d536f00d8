"""Rules of the backward pass, done the long way: every formula written out, with the weights.

Norms by their own weights and epsilon, the softmax by a backward pass of its own, factors where two
things are multiplied, and not where they come from. Knows nothing of nnattr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.oracles.maps import map_of
from tests.oracles.patching import on_input, on_output

#: The MLP's activation and its last projection, in a layer.
MLP = {
    "gpt2": ("mlp.act", "mlp.c_proj"),
    "gpt_neox": ("mlp.act", "mlp.dense_4h_to_h"),
    "falcon": ("mlp.act", "mlp.dense_4h_to_h"),
    "phi3": ("mlp.activation_fn", "mlp.down_proj"),
    "opt": ("activation_fn", "fc2"),
}


class Scaled(torch.autograd.Function):
    """A value whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.factor * gradients[0], None


class Softened(torch.autograd.Function):
    """A softmax, whose backward pass is that of a softmax of scores / temperature."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward((scores / temperature).softmax(-1))
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (soft,) = ctx.saved_tensors
        inner = (soft * gradients[0]).sum(-1, keepdim=True)
        return soft * (gradients[0] - inner), None


def held_norm(norm: Any, x: Tensor) -> Tensor:
    """A norm with its scale held, from its weights."""
    weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
        size = (x * x).mean(-1, keepdim=True) + norm.eps
        return x * size.rsqrt().detach() * weight + norm.bias
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return x * ((x * x).mean(-1, keepdim=True) + eps).rsqrt().detach() * weight


@contextmanager
def rules(module: Any, names: tuple[str, ...], temperature: float = 2.0) -> Iterator[None]:
    """While this lasts, gradients follow these rules."""
    act, projection = MLP.get(module.config.model_type, ("mlp.act_fn", "mlp.down_proj"))
    layers = module.get_submodule(map_of(module).layers)
    with ExitStack() as stack:
        handles: list[Any] = []
        if "norms" in names:
            for part in module.modules():
                if isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("RMSNorm"):
                    handles.append(part.register_forward_hook(lambda m, a, _: held_norm(m, a[0])))
        for layer in layers:
            if "activations" in names:
                handles.append(
                    layer.get_submodule(act).register_forward_hook(
                        lambda m, a, y: a[0] * (y / a[0]).detach()
                    )
                )
            if "products" in names:
                handles.append(
                    on_input(layer.get_submodule(projection), lambda x: Scaled.apply(x, 0.5))
                )
        for handle in handles:
            stack.callback(handle.remove)
        if {"attention", "softmax", "patterns"} & set(names):
            stack.enter_context(attention_rules(module, names, temperature))
        yield


@contextmanager
def attention_rules(module: Any, names: tuple[str, ...], temperature: float) -> Iterator[None]:
    """The model's own plain attention, written out with rules."""
    code: Any = sys.modules[type(module).__module__]
    config, implementation = module.config, module.config._attn_implementation
    before = code.eager_attention_forward

    def plain(block: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any) -> Any:
        if "attention" in names:
            q, k, v = Scaled.apply(q, 0.25), Scaled.apply(k, 0.25), Scaled.apply(v, 0.5)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.mT * options["scaling"]
        cap = options.get("softcap")
        scores = scores if cap is None else torch.tanh(scores / cap) * cap
        scores = scores if mask is None else scores + mask[..., : k.shape[-2]]
        soft = Softened.apply(scores, temperature) if "softmax" in names else scores.softmax(-1)
        pattern: Any = soft.detach() if "patterns" in names else soft
        return (pattern @ v).transpose(1, 2), pattern

    code.eager_attention_forward, config._attn_implementation = plain, "eager"
    registered = ALL_ATTENTION_FUNCTIONS.get("eager")
    ALL_ATTENTION_FUNCTIONS["eager"] = plain
    try:
        yield
    finally:
        code.eager_attention_forward, config._attn_implementation = before, implementation
        del ALL_ATTENTION_FUNCTIONS["eager"]
        if registered is not None:
            ALL_ATTENTION_FUNCTIONS["eager"] = registered


@contextmanager
def dropped(module: Any, layer: int) -> Iterator[None]:
    """While this lasts, no gradient goes through what a layer writes."""
    where = map_of(module)
    block = module.get_submodule(where.layers)[layer]
    handles = [
        on_output(block.get_submodule(path), lambda x: x.detach())
        for path in (where.attention, where.mlp)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
