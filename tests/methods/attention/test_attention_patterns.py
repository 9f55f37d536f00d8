"""Patterns of chosen heads: the model's own, weighted or not, named, kept and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, attention_patterns, attribution_patching
from nnattr.errors import ArchError, ArgumentError, ResultError, TaskError
from nnattr.results import Patterns
from tests.methods.common import TEACHING, ragged_ioi, raw_module, teaching, tiny
from tests.oracles import attention
from tests.tiny import HEADS, LAYERS, tiny_model

PROMPTS = ["w3 w4 w5 w6 w7 w8 w9", "w33 w34 w35"]


def own(model: Any, prompt: str) -> torch.Tensor:
    return torch.tensor([model.tokenizer(prompt)["input_ids"]])


@pytest.mark.parametrize("name", TEACHING)
def test_they_are_the_models_own(name: str) -> None:
    model = teaching(name)
    task = ragged_ioi(model)
    found = attention_patterns(model, task)
    assert len(found.heads) == model.n_layers * model.n_heads
    for i, prompt in enumerate(task.clean):
        expected = attention.patterns(raw_module(model), own(model, prompt))
        n = expected.shape[-1]
        assert found.tokens[i] == task.clean_tokens.strings[i]
        for layer, head in found.heads:
            one = found.of(layer, head, i)
            assert one.dims == ("query_pos", "key_pos")
            np.testing.assert_allclose(one, expected[layer, head], rtol=0, atol=1e-5)
        assert np.isnan(found.values[i, :, n:]).all()
        assert np.isnan(found.values[i, :, :, n:]).all()


def test_the_other_run_of_a_task_and_plain_prompts() -> None:
    model = teaching("teaching-gpt2")
    task = ragged_ioi(model)
    other = attention_patterns(model, task, run="corrupted")
    assert other.prompts == task.corrupted
    plain = attention_patterns(model, list(task.corrupted))
    np.testing.assert_allclose(other.values, plain.values, rtol=0, atol=1e-6)
    assert np.nanmax(abs(other.values - attention_patterns(model, task).values)) > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon-new"])
def test_chosen_heads_keep_their_order(family: str) -> None:
    model = tiny(family)
    every = attention_patterns(model, PROMPTS)
    some = attention_patterns(model, PROMPTS, [(2, 1), "0.3", "L2H0", "a1.h2", (2, 1)])
    assert some.heads == [(2, 1), (0, 3), (2, 0), (1, 2)]
    for layer, head in some.heads:
        assert some.of(layer, head, 1).equals(every.of(layer, head, 1))
    assert attention_patterns(model, PROMPTS, "1.3").heads == [(1, 3)]


def test_the_strongest_heads_of_scores() -> None:
    model = teaching("teaching-gpt2")
    task = nnattr.tasks.ioi(model.tokenizer, n=4, seed=0)
    scores = attribution_patching(model, task, LogitDiff())
    best = [cell.index for cell in scores.top(2, by="value")]
    worst = [cell.index for cell in scores.top(2, by="-value")]
    assert scores.top(2, by="-value")[1].value < 0, "this task has no negative heads"
    assert attention_patterns(model, task, scores, k=2).heads == best + worst
    each = attribution_patching(model, task, LogitDiff(), positions="last")
    assert len(attention_patterns(model, task, each.mean(), k=1).heads) == 2
    layers = attribution_patching(model, task, LogitDiff(), site="mlp_out")
    with pytest.raises(ResultError, match=r"over \('layer',\)"):
        attention_patterns(model, task, layers)
    with pytest.raises(ResultError, match="no head stands out"):
        attention_patterns(model, task, scores.where(scores.mean().values > 99))


def test_a_simulated_server_gives_the_same_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = attention_patterns(tiny("llama"), PROMPTS, ["2.1", "0.3"])
    there = attention_patterns(tiny_model("llama", backend="simulated"), PROMPTS, ["2.1", "0.3"])
    assert here.values.equals(there.values)
    monkeypatch.setattr("nnattr.model.model.TOKENS_PER_FORWARD", 1)
    chunked = attention_patterns(tiny("llama"), PROMPTS, ["2.1", "0.3"])
    np.testing.assert_allclose(chunked.values, here.values, rtol=0, atol=1e-6)


def test_they_are_kept_in_a_file(tmp_path: Path) -> None:
    found = attention_patterns(tiny("gpt2"), PROMPTS, ["2.1", "0.3"])
    again = Patterns.load(found.save(tmp_path / "p.safetensors"))
    assert again.values.identical(found.values)
    assert (again.tokens, again.prompts, again.weighted, again.model, again.heads) == (
        found.tokens,
        found.prompts,
        found.weighted,
        found.model,
        found.heads,
    )
    model = teaching("teaching-gpt2")
    task = nnattr.tasks.ioi(model.tokenizer, n=2)
    attribution_patching(model, task, LogitDiff()).save(tmp_path / "s.safetensors")
    with pytest.raises(ResultError, match="'Scores' and not Patterns"):
        Patterns.load(tmp_path / "s.safetensors")
    with pytest.raises(ResultError, match="at most 7 tokens"):
        replace(found, data=found.data.isel(query_pos=slice(1, None)))


def test_figures() -> None:
    found = attention_patterns(tiny("gpt2"), PROMPTS)
    many = found.plot()
    assert len(many.data) == LAYERS * HEADS
    assert {trace.zmax for trace in many.data} == {1.0}
    one = found.plot(1, heads=[(2, 3)], title="<i>")
    (trace,) = one.data
    below = np.tril(np.ones((3, 3), bool))
    np.testing.assert_allclose(trace.z[below], found.of(2, 3, 1).to_numpy()[below])
    assert np.isnan(trace.z[~below]).all()
    assert "w34" in trace.customdata[2, 1][1]
    for call in ({"example": 2}, {"heads": [(9, 9)]}):
        with pytest.raises(ResultError, match="There is no"):
            found.plot(**call)


def test_wrong_questions_are_named() -> None:
    model = tiny("gpt2")
    for heads in ([(3, 0)], [(0, 4)], ["x"], [5], [], "9.9", [("a", 1)]):
        with pytest.raises((ArchError, ArgumentError), match="head"):
            attention_patterns(model, PROMPTS, heads)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="prompts is"):
        attention_patterns(model, [])
    task = nnattr.Task.from_prompts(PROMPTS, tokenizer=model.tokenizer)
    with pytest.raises(TaskError, match="no corrupted"):
        attention_patterns(model, task, run="corrupted")
    with pytest.raises(ArgumentError, match="run is "):
        attention_patterns(model, task, run="both")  # type: ignore[arg-type]
    with pytest.raises(ArchError, match="makes other predictions"):
        attention_patterns(tiny("falcon-serial"), PROMPTS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon-new", "gpt_neox", "gemma2", "opt"])
def test_values_weigh_by_what_is_written(family: str) -> None:
    """Against a head's output with all of its attention on one key, through W_O by hand."""
    model = tiny(family)
    plain = attention_patterns(model, PROMPTS)
    weighted = attention_patterns(model, PROMPTS, weighted=True)
    assert weighted.weighted
    assert "value-weighted" in repr(weighted)
    for i, prompt in enumerate(PROMPTS):
        ids = own(model, prompt)
        for key in range(ids.shape[1]):
            sizes = written_from(model, ids, key)
            for layer, head in weighted.heads:
                share = weighted.of(layer, head, i)[:, key]
                expected = plain.of(layer, head, i)[:, key] * sizes[layer][head]
                np.testing.assert_allclose(share, expected, rtol=1e-4, atol=1e-6)


def written_from(model: Any, ids: torch.Tensor, key: int) -> list[list[float]]:
    """For each layer and head the length of what it writes if it looks at ``key`` alone.

    The streams that enter the layers at ``key`` are put into a run of that one token, in which
    every head can look at nothing else.
    """
    module = raw_module(model)
    layers = module.get_submodule(model.spec.layers)
    with torch.no_grad():
        streams: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: streams.append((args or tuple(kwargs.values()))[0]),
                with_kwargs=True,
            )
            for layer in layers
        ]
        module(ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        z: list[torch.Tensor] = []
        places = [module.get_submodule(path) for path, _, _ in model.places("z")]
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, x=x: (
                    ((x[:, key : key + 1], *args[1:]), kwargs)
                    if args
                    else (args, {**kwargs, "hidden_states": x[:, key : key + 1]})
                ),
                with_kwargs=True,
            )
            for layer, x in zip(layers, streams, strict=True)
        ]
        hooks += [
            part.register_forward_pre_hook(lambda _, args: z.append(args[0])) for part in places
        ]
        module(ids[:, key : key + 1], use_cache=False)
        for hook in hooks:
            hook.remove()
        found = []
        for part, value in zip(places, z, strict=True):
            bias = part(torch.zeros_like(value))
            heads = value.unflatten(-1, (model.n_heads, -1))
            rows = []
            for head in range(model.n_heads):
                alone = torch.zeros_like(heads)
                alone[..., head, :] = heads[..., head, :]
                rows.append(float((part(alone.flatten(-2)) - bias).norm()))
            found.append(rows)
    return found
