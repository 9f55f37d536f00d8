"""Copying heads and name movers: by the weights, written out, and on the teaching models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import Task, attention_patterns, copying_score, name_mover_score
from nnattr.errors import ArgumentError, TaskError
from tests.methods.common import TEACHING, raw_module, teaching, tiny
from tests.tiny import FAMILIES, HEADS, tiny_model

PROMPTS = ["w3 w4 w5 w6 w7 w8 w9", "w33 w34 w35", "w40 w41 w42 w43 w44 w45"]
K = 30  # of 96: random heads copy about every third token


def stream_after_first(module: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(ids, output_hidden_states=True).hidden_states[1][0]


def gpt2_heads(module: Any, layer: int, x: torch.Tensor) -> list[torch.Tensor]:
    """OV(ln_1(x)) of each head by GPT-2's weights, no output bias."""
    block = module.transformer.h[layer]
    size = x.shape[-1]
    v = block.ln_1(x) @ block.attn.c_attn.weight[:, 2 * size :] + block.attn.c_attn.bias[2 * size :]
    out = block.attn.c_proj.weight.chunk(HEADS, 0)
    return [one @ matrix for one, matrix in zip(v.chunk(HEADS, -1), out, strict=True)]


def llama_heads(module: Any, layer: int, x: torch.Tensor) -> list[torch.Tensor]:
    """The same by Llama's, two heads to a value head."""
    block = module.model.layers[layer]
    values = (block.input_layernorm(x) @ block.self_attn.v_proj.weight.T).chunk(2, -1)
    out = block.self_attn.o_proj.weight.chunk(HEADS, 1)
    return [values[head // 2] @ matrix.T for head, matrix in enumerate(out)]


def by_weights(family: str, prompt: str, sign: int = 1) -> np.ndarray:
    """Whether each head copies each token [layer, head, pos]."""
    model = tiny(family)
    module = raw_module(model)
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    heads = {"gpt2": gpt2_heads, "llama": llama_heads}[family]
    norm = {"gpt2": lambda: module.transformer.ln_f, "llama": lambda: module.model.norm}[family]()
    x, found = stream_after_first(module, ids), []
    with torch.no_grad():
        for layer in range(model.n_layers):
            logits = [module.lm_head(norm(sign * one)) for one in heads(module, layer, x)]
            best = [one.topk(K).indices.tolist() for one in logits]
            found.append(
                [
                    [token in row for token, row in zip(ids[0].tolist(), b, strict=True)]
                    for b in best
                ]
            )
    return np.array(found, dtype=float)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_what_the_weights_say(family: str, negative: bool) -> None:
    found = copying_score(tiny(family), PROMPTS, top_k=K, negative=negative)
    for i, prompt in enumerate(PROMPTS):
        expected = by_weights(family, prompt, -1 if negative else 1)
        assert 0.1 < expected.mean() < 0.9, "nothing to tell apart"
        own = found.scores.sel(example=i, kind="copying")
        np.testing.assert_allclose(own, expected.mean(-1), atol=1e-6)
    last = copying_score(tiny(family), PROMPTS, positions="last", top_k=K, negative=negative)
    np.testing.assert_allclose(last.scores[1, 0], expected_last(family, 1, negative), atol=1e-6)


def expected_last(family: str, i: int, negative: bool) -> np.ndarray:
    return by_weights(family, PROMPTS[i], -1 if negative else 1)[..., -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_is_served(family: str) -> None:
    """A head copies a token whatever stands beside it, since it looks at that token alone."""
    model = tiny(family)
    found = copying_score(model, PROMPTS, top_k=K)
    assert 0.05 < float(found.scores.mean()) < 0.95
    alone = copying_score(model, PROMPTS[1], top_k=K)
    np.testing.assert_allclose(found.scores[1], alone.scores[0], atol=1e-6)
    everything = copying_score(model, PROMPTS[1], top_k=model.config.vocab_size)
    assert float(everything.scores.min()) == 1


@pytest.mark.parametrize("name", TEACHING)
def test_the_induction_heads_of_the_teaching_models_copy(name: str) -> None:
    model = teaching(name)
    task = nnattr.tasks.repeated_tokens(model.tokenizer, n=6, length=12)
    copies = copying_score(model, task, positions="source")
    induction = nnattr.detect_heads(model, n=4, length=20).heads("induction")
    best = copies.heads("copying")
    assert best[0].value > 0.9
    assert induction[0].index in best.indices
    assert float(copies.mean().median()) < 0.2


@pytest.mark.parametrize("name", TEACHING)
def test_name_movers_look_and_copy(name: str) -> None:
    model = teaching(name)
    task = nnattr.tasks.ioi(model.tokenizer, n=12, seed=0)
    found = name_mover_score(model, task)
    copied = copying_score(model, task, positions="IO").scores.sel(kind="copying")
    np.testing.assert_allclose(found.scores.sel(kind="copying"), copied, atol=1e-6)
    looks = attention_patterns(model, task)
    for i in range(len(task)):
        (at,) = task.spans["IO"][i]
        end = len(task.clean_tokens.strings[i]) - 1
        attention = looks.values[i, :, end, at].to_numpy().reshape(model.n_layers, -1)
        own = found.scores.sel(example=i)
        np.testing.assert_allclose(own.sel(kind="attention"), attention, atol=1e-6)
        product = attention * copied.sel(example=i).to_numpy()
        np.testing.assert_allclose(own.sel(kind="name mover"), product, atol=1e-6)
    assert found.top("attention", 1)[0].value > 0.3
    assert len(found.plot().data) == 3
    assert found.kinds == ["name mover", "attention", "copying"]


def test_a_simulated_server_gives_the_same_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Task.from_prompts(PROMPTS, ["w5", "w34", "w40"], tokenizer=tiny("llama").tokenizer)
    here = name_mover_score(tiny("llama"), task, top_k=K)
    there = name_mover_score(tiny_model("llama", backend="simulated"), task, top_k=K)
    assert here.scores.equals(there.scores)
    monkeypatch.setattr("nnattr.model.model.TOKENS_PER_FORWARD", 1)
    chunked = name_mover_score(tiny("llama"), task, top_k=K)
    np.testing.assert_allclose(chunked.scores, here.scores, atol=1e-6)
    every = copying_score(tiny("llama"), task, top_k=K)
    np.testing.assert_allclose(
        every.scores, copying_score(tiny("llama"), PROMPTS, top_k=K).scores, atol=1e-6
    )


def test_wrong_questions_are_named() -> None:
    model = tiny("gpt2")
    with pytest.raises(ArgumentError, match="top_k is "):
        copying_score(model, PROMPTS, top_k=0)
    with pytest.raises(TaskError, match="Position 5 is outside"):
        copying_score(model, PROMPTS, positions=5)
    absent = Task.from_prompts(PROMPTS, ["w5", "w70", "w40"], tokenizer=model.tokenizer)
    with pytest.raises(TaskError, match=r"'w70'.*does not stand in the prompt 'w33 w34 w35'"):
        name_mover_score(model, absent)
    none = Task.from_prompts(PROMPTS, tokenizer=model.tokenizer)
    with pytest.raises(TaskError, match="no answers"):
        name_mover_score(model, none)
