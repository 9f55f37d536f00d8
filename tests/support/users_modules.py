"""What somebody may have done to a module: hooks, forwards, other classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny import tiny_tokenizer

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
