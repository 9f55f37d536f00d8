"""What must hold for any weights, without a reference to compare with.

Each test also shows that there was something to find: the same call on a neighbouring question
gives a different answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task, activation_patching
from nnattr.errors import TaskError
from tests.methods.common import (
    METHODS,
    SITES,
    TEACHING,
    assert_far,
    assert_same,
    even_ioi,
    first_difference,
    ragged_ioi,
    ragged_tiny,
    teaching,
    tiny,
)
from tests.support.families import families
from tests.tiny import tiny_module, tiny_tokenizer

SERIAL = ("gpt2", "llama", "bloom", "gemma2", "granite", "mixtral", "olmo2", "opt")


def itself(model: Model, task: Task) -> Task:
    """The task with its clean prompts on both sides."""
    answers, wrong = task.answers, task.wrong_answers
    return Task.from_pairs(task.clean, task.clean, answers, wrong, tokenizer=model.tokenizer)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*TEACHING, *families()])
def test_a_run_patched_with_itself_changes_by_exactly_nothing(name: str, method: str) -> None:
    model = teaching(name) if name in TEACHING else tiny(name)
    task = ragged_ioi(model) if name in TEACHING else ragged_tiny(model)
    sites = ["z", "mlp_out", "resid_pre", *([] if model.spec.parallel else ["resid_mid"])]
    for site in sites:
        options: dict[str, Any] = {"site": site, "normalized": False, "positions": "last"}
        same = METHODS[method](model, itself(model, task), LogitDiff(), **options)
        other = METHODS[method](model, task, LogitDiff(), **options)
        assert not same.raw.any(), site
        assert other.raw.any(), site


@pytest.mark.parametrize("method", METHODS)
def test_runs_that_do_not_differ_cannot_be_normalised(method: str) -> None:
    model = tiny("llama")
    task = itself(model, ragged_tiny(model))
    with pytest.raises(TaskError, match="nothing to attribute"):
        METHODS[method](model, task, LogitDiff())


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", TEACHING)
def test_patching_everything_gives_the_other_run(name: str, direction: Any) -> None:
    """The whole stream at the start, or its last token at the end: the other run, example by
    example; so the mean normalised score is 1."""
    model = teaching(name)
    task = ragged_ioi(model)
    for site, layer, positions in (("resid_pre", 0, "all"), ("resid_post", -1, "last")):
        scores = activation_patching(
            model, task, LogitDiff(), site=site, positions=positions, direction=direction
        )
        clean, corrupted = scores.baselines.to_numpy()
        gap = clean - corrupted if direction == "denoising" else corrupted - clean
        assert_same(scores.raw[:, layer], gap)
        assert float(scores.mean().values[layer]) == pytest.approx(1, abs=1e-5)
    elsewhere = activation_patching(model, task, LogitDiff(), positions=0, direction=direction)
    assert float(elsewhere.mean().values.max()) < 0.5


@pytest.mark.parametrize("family", SERIAL)
def test_what_leaves_a_layer_enters_the_next(family: str) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    post, pre = (
        activation_patching(model, task, LogitDiff(), site=site, positions="each").raw
        for site in ("resid_post", "resid_pre")
    )
    assert_same(pre[:, 1:], post[:, :-1])
    assert_far(pre[:, 1:], pre[:, :-1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", TEACHING)
def test_nothing_before_the_first_difference_matters(name: str, site: Any, method: str) -> None:
    model = teaching(name)
    task = ragged_ioi(model)
    scores = METHODS[method](model, task, LogitDiff(), site=site, positions="each")
    for example in range(len(task)):
        first, pad = first_difference(task, example), task.clean_tokens.padding[example]
        own = scores.raw.sel(example=example)  # a cell for each column of the padded batch
        before = own.isel(pos=slice(pad, first))
        assert before.size
        assert not before.any()
        assert own.isel(pos=slice(first, None)).any()
        assert np.isnan(own.isel(pos=slice(0, pad))).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*TEACHING, *families()])
def test_a_padded_batch_gives_what_each_example_gives_alone(name: str, method: str) -> None:
    model = teaching(name) if name in TEACHING else tiny(name)
    task = ragged_ioi(model) if name in TEACHING else ragged_tiny(model)
    assert any(task.clean_tokens.padding)
    options: dict[str, Any] = {"site": "z", "normalized": False, "positions": "each"}
    together = METHODS[method](model, task, LogitDiff(), **options)
    for i, alone in enumerate(task):
        one = METHODS[method](model, alone, LogitDiff(), **options)
        assert not any(alone.clean_tokens.padding)
        assert_same(together.raw[i, ..., task.clean_tokens.padding[i] :], one.raw[0], 2e-5)
        assert_same(together.baselines[:, i], one.baselines[:, 0], 2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_examples_does_not_matter(method: str) -> None:
    model = tiny("gpt2")
    task = ragged_tiny(model)
    order = [2, 0, 1]
    straight, shuffled = (
        METHODS[method](model, one, LogitDiff(), site="attn_out") for one in (task, task[order])
    )
    assert_same(shuffled.raw, straight.raw[order])
    assert_far(shuffled.raw, straight.raw)
    assert shuffled.scale == pytest.approx(straight.scale)


@pytest.mark.parametrize("method", METHODS)
def test_exchanging_the_prompts_exchanges_the_directions(method: str) -> None:
    """Clean and corrupted, right and wrong exchanged: noising becomes denoising of the other
    task, with the metric's sign turned."""
    model = teaching("teaching-llama")
    task = even_ioi(model)
    mirrored = Task.from_pairs(
        task.corrupted, task.clean, task.wrong_answers, task.answers, tokenizer=model.tokenizer
    )
    noising = METHODS[method](model, task, LogitDiff(), direction="noising")
    denoising = METHODS[method](model, mirrored, LogitDiff(), direction="denoising")
    assert_same(denoising.raw, -noising.raw)
    assert_same(denoising.values, noising.values)
    assert_far(METHODS[method](model, task, LogitDiff()).raw, noising.raw)


@pytest.mark.parametrize("method", METHODS)
def test_grouped_query_attention_is_attention_with_repeated_keys(method: str) -> None:
    """z has one slice per query head, however the keys are shared: writing the shared keys and
    values out for every head changes no score."""
    grouped = tiny_module("llama")
    written_out = tiny_module("llama", num_key_value_heads=4)
    state = grouped.state_dict()
    for name in [name for name in state if "k_proj" in name or "v_proj" in name]:
        shared = state[name].unflatten(0, (2, -1))
        state[name] = shared.repeat_interleave(2, 0).flatten(0, 1)
    written_out.load_state_dict(state)
    assert (grouped.config.num_key_value_heads, grouped.config.num_attention_heads) == (2, 4)
    models = [nnattr.load(m, tokenizer=tiny_tokenizer()) for m in (grouped, written_out)]
    one, other = (METHODS[method](m, ragged_tiny(m), LogitDiff(), site="z").raw for m in models)
    assert one.sizes["head"] == 4
    assert_same(one, other)
    assert_far(one[:, :, ::2], one[:, :, 1::2])  # heads that share keys are not the same head


def test_patching_twice_gives_the_same_bits() -> None:
    model = teaching("teaching-gpt2")
    task = ragged_ioi(model)
    for method in METHODS.values():
        one, other = (method(model, task, LogitDiff(), positions="each").raw for _ in range(2))
        np.testing.assert_array_equal(one, other)
        assert one.any()


def test_dropout_is_off() -> None:
    """A module handed over in training mode would differ from itself."""
    module = tiny_module("gpt2").train()
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in module.modules())
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    task = ragged_tiny(model)
    same = activation_patching(model, itself(model, task), LogitDiff(), normalized=False)
    assert not same.raw.any()
