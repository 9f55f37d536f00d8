"""A model whose weights hold NaN is refused, and says nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nnattr
from nnattr import LogitDiff, NnattrError
from nnattr.teaching import folder


@pytest.mark.parametrize("backend", ["local", "simulated"])
def test_nothing_is_said_without_numbers(backend: str) -> None:
    module = AutoModelForCausalLM.from_pretrained(folder("teaching-gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(folder("teaching-gpt2"))
    model = nnattr.load(module, tokenizer=tokenizer, backend=backend)
    task = nnattr.tasks.ioi(tokenizer, n=2, seed=0)
    assert nnattr.generate(model, task)[0]
    with torch.no_grad():
        module.transformer.h[2].mlp.c_fc.weight[0, 0] = torch.nan
    calls = (
        lambda: nnattr.generate(model, task),
        lambda: nnattr.inspect_prompt(model, task.clean[0]),
        lambda: nnattr.most_frequent_answers(model, task.clean),
        lambda: task.filter(model),
        lambda: nnattr.activation_patching(model, task, LogitDiff()),
        lambda: nnattr.logit_lens(model, task),
        lambda: nnattr.attention_patterns(model, task, heads=[(3, 0)]),
        lambda: nnattr.detect_heads(model),
        lambda: nnattr.decompose_attention(model, task, (3, 0)),
        lambda: nnattr.compare_runs(model, task.clean[0], task.clean[1]),
        lambda: nnattr.weights.ov(model, (2, 1)).copying_score(),
        lambda: nnattr.direct_logit_attribution(model, task),
    )
    for call in calls:
        with pytest.raises(NnattrError, match=r"NaN|not finite"):
            call()
