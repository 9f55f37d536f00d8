"""Weights stand in for modules only where the modules are no more than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nnattr
from nnattr import Model, weights
from nnattr.errors import ArchError
from nnattr.maps.linear import matrix
from tests.methods.common import assert_far, assert_same
from tests.tiny import HEADS, KV_HEADS, tiny_module, tiny_tokenizer


def loaded(module: Any) -> Model:
    return nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")


def double(part: Any, given: Any, output: Any) -> Any:
    """A hook that a matrix can have in it."""
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output


def squared(part: Any, given: Any, output: Any) -> Any:
    """A hook that no matrix can have in it."""
    return output + output.square()


def of_module(module: Any, head: int) -> Tensor:
    """The first layer's OV circuit of a Llama, by calling its modules on unit vectors."""
    attention, size = module.model.layers[0].self_attn, module.config.head_dim
    eye = torch.eye(module.config.hidden_size)[None]
    v = attention.v_proj(eye)[0].unflatten(-1, (KV_HEADS, size))[:, head * KV_HEADS // HEADS]
    z = torch.zeros(len(v), HEADS, size)
    z[:, head] = v
    written = attention.o_proj(z.flatten(1)[None])[0]
    return module.get_input_embeddings().weight @ written @ module.lm_head(eye)[0]


#: What is done to the first layer of a Llama, or to its end, that stays linear.
LINEAR: dict[str, Callable[[Any], object]] = {
    "output projection": lambda m: m.model.layers[0].self_attn.o_proj.register_forward_hook(double),
    "values": lambda m: m.model.layers[0].self_attn.v_proj.register_forward_hook(double),
    "unembedding": lambda m: m.lm_head.register_forward_hook(double),
}


@pytest.mark.parametrize("done", LINEAR)
def test_a_hook_that_a_matrix_has_in_it_is_in_the_circuit(done: str) -> None:
    module = tiny_module("llama")
    model, ids = loaded(module), [5, 17, 60]
    before = weights.ov(model, (0, 1)).block(ids).values
    LINEAR[done](module)
    found = weights.ov(model, (0, 1)).block(ids).values
    assert_same(found, of_module(module, 1)[ids][:, ids])
    assert_far(found, before)


#: What makes a circuit of weights another thing than what the model does.
REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "output projection": (
        lambda m: m.model.layers[0].self_attn.o_proj.register_forward_hook(squared),
        "should be linear",
    ),
    "unembedding": (lambda m: m.lm_head.register_forward_hook(squared), "should be linear"),
    "attention": (
        lambda m: m.model.layers[0].self_attn.register_forward_hook(double),
        "hook, or a forward of its own, is on the LlamaAttention",
    ),
    "the model": (
        lambda m: m.register_forward_hook(
            lambda part, given, output: setattr(output, "logits", 3 * output.logits)
        ),
        "logits are not those of the weights alone",
    ),
    "last position": (
        lambda m: m.model.layers[0].self_attn.o_proj.register_forward_hook(
            lambda part, given, output: torch.cat([output[:, :-1], 3 * output[:, -1:]], 1)
        ),
        "differ by|should be linear",
    ),
}


@pytest.mark.parametrize("done", REFUSED)
def test_what_no_matrix_has_in_it_is_refused(done: str) -> None:
    module = tiny_module("llama")
    model = loaded(module)
    assert weights.ov(model, (0, 1)).norm() > 0
    put, reason = REFUSED[done]
    put(module)
    with pytest.raises(ArchError, match=reason):
        weights.ov(model, (0, 1)).norm()


def test_a_table_of_positions_is_asked_and_not_read() -> None:
    module = tiny_module("gpt2")
    model = loaded(module)
    before = scores(weights.position_pattern(model, (0, 1)))
    module.transformer.wpe.register_forward_hook(double)
    assert_same(scores(weights.position_pattern(model, (0, 1))), 4 * before)


def scores(pattern: Any) -> Any:
    """What a query's pattern is the softmax of, less its first entry."""
    row = np.log(pattern.values.to_numpy()[7, :8].astype(float))
    return row - row[0]


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_neo"])
def test_a_sliding_window_is_not_called_a_bias_for_distance(family: str) -> None:
    window = {"window_size" if family == "gpt_neo" else "sliding_window": 4}
    model = loaded(tiny_module(family, **window))
    prompt = " ".join(f"w{number}" for number in range(60, 80))
    said = []
    for layer in range(model.n_layers):
        for ask in (
            lambda at: weights.qk(model, (at, 0)).norm(),
            lambda at: nnattr.decompose_attention(model, prompt, (at, 0)),
        ):
            try:
                ask(layer)
            except ArchError as error:
                said.append(str(error))
    assert said
    assert all("sliding window" in one and "ALiBi" not in one for one in said)


def test_attributions_and_lens_read_what_hooks_return() -> None:
    """What a hook changes is read behind it; what no sum of parts has in it is refused."""
    module = tiny_module("llama")
    model = loaded(module)
    task = nnattr.Task.from_prompts(["w3 w4 w5 w6"], ["w70"], ["w80"], tokenizer=model.tokenizer)
    module.model.layers[1].mlp.down_proj.register_forward_hook(double)
    module.model.layers[0].self_attn.o_proj.register_forward_hook(double)
    module.lm_head.register_forward_hook(double)
    with torch.no_grad():
        logits = module(input_ids=task.clean_tokens.ids).logits[0, -1]
    wanted = float(logits[task.answer_ids[0][0]] - logits[task.wrong_answer_ids[0][0]])
    for unit in ("component", "head", "neuron"):
        found = nnattr.direct_logit_attribution(model, task, unit=unit)
        total = float(found.raw.sum()) + (0 if found.rest is None else float(found.rest.sum()))
        assert total == pytest.approx(wanted, rel=1e-4)
    lens = nnattr.logit_lens(model, task, top_k=1)
    shown = float(lens.data["probability"][0, -1, 0, 0])
    assert shown == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)
    handle = module.register_forward_hook(
        lambda part, given, output: setattr(output, "logits", 3 * output.logits)
    )
    for ask in (nnattr.direct_logit_attribution, nnattr.logit_lens):
        with pytest.raises(ArchError):
            ask(model, task)
    handle.remove()


def test_a_quantized_kind_of_weight_is_not_read() -> None:
    """A subclass of tensors, such as quantization makes, multiplies in its own way."""

    class Coarse(Tensor):
        pass

    class Envoy:
        def __init__(self, module: nn.Module) -> None:
            self._module = module
            self.weight = module.weight

    layer = nn.Linear(3, 3)
    assert matrix(Envoy(layer)) is not None
    coarse = layer.weight.detach().as_subclass(Coarse)
    layer.weight = nn.Parameter(coarse, requires_grad=False)
    assert matrix(Envoy(layer)) is None
