"""The answer direction, dotted with the normed residual stream, is the logit difference."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import Loss, Task, capture
from nnattr.errors import MetricError
from tests.methods.common import raw_module
from tests.tiny import tiny_model, tiny_tokenizer


def question(groups: bool = False) -> Task:
    """Prompts of two lengths; with groups, answers of several words."""
    right = [["w70", "w72", "w74"], ["w71"]] if groups else ["w70", "w71"]
    wrong = [["w80"], ["w81", "w83"]] if groups else ["w80", "w81"]
    prompts = ["w33 w44 w55 w66", "w77 w88"]
    return Task.from_prompts(prompts, right, wrong, tokenizer=tiny_tokenizer())


def gaps(model: Any, task: Task) -> np.ndarray:
    """The mean logit of the answers less that of the wrong ones, prompt by prompt."""
    found = []
    for prompt, right, wrong in zip(
        task.clean, task.answer_ids, task.wrong_answer_ids, strict=True
    ):
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            logits = raw_module(model)(ids).logits[0, -1]
        found.append(float(logits[list(right)].mean() - logits[list(wrong)].mean()))
    return np.array(found)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "granite", "cohere", "gptj"])
def test_it_reads_the_logit_difference_behind_the_norm(family: str, groups: bool) -> None:
    model, task = tiny_model(family), question(groups)
    found = nnattr.weights.answer_direction(model, task)
    assert found.dims == ("example", "d_model")
    assert found.dtype == np.float32
    last = capture(model, task, "resid_post", positions="last", layers=model.n_layers - 1)
    stream = torch.from_numpy(last["resid_post"].to_numpy()[:, 0, 0])
    module = raw_module(model)
    norm = module.get_submodule(model.spec.final_norm or "")
    with torch.no_grad():
        read = (norm(stream).numpy() * found.to_numpy()).sum(-1)
    bias = getattr(module.get_submodule(model.spec.unembed), "bias", None)
    if bias is not None:
        sides = zip(task.answer_ids, task.wrong_answer_ids, strict=True)
        read += [float(bias[list(a)].mean() - bias[list(b)].mean()) for a, b in sides]
    expected = gaps(model, task)
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(read, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_server_gives_the_same() -> None:
    model = tiny_model("llama")
    there = nnattr.load(raw_module(model), tokenizer=model.tokenizer, backend="simulated")
    expected = nnattr.weights.answer_direction(model, question())
    assert nnattr.weights.answer_direction(there, question()).identical(expected)


def test_it_is_what_the_unembedding_does_and_not_its_weights_alone() -> None:
    """A parametrized unembedding, as an adapter makes one."""
    model = tiny_model("llama")
    module = copy.deepcopy(raw_module(model))
    torch.nn.utils.parametrizations.weight_norm(module.lm_head)
    with torch.no_grad():
        module.lm_head.parametrizations.weight.original0.mul_(3.0)
    changed = nnattr.load(module, tokenizer=model.tokenizer)
    ours = nnattr.weights.answer_direction(changed, question())
    plain = nnattr.weights.answer_direction(model, question())
    np.testing.assert_allclose(ours, 3.0 * plain, rtol=0, atol=1e-4)


def test_a_metric_without_a_direction_is_named() -> None:
    with pytest.raises(MetricError, match="not linear"):
        nnattr.weights.answer_direction(tiny_model("llama"), question(), Loss())
