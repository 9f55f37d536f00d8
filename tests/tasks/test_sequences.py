"""Answers of several tokens: teacher-forced, in every causal method, positions in the prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, LogProb, SequenceLogProb, Task
from nnattr.errors import MetricError, TaskError
from nnattr.metrics import direction
from nnattr.tasks.positions import spots
from tests.tasks.common import PROMPTS as STORIES
from tests.tasks.common import TWINS as OTHER_STORIES
from tests.tasks.common import tokenizer_of
from tests.tiny import tiny_model

FAMILIES = ("gpt2", "llama")
PROMPTS, TWINS = ("w3 w4 w5 w6 w7", "w33 w34 w35"), ("w3 w9 w5 w6 w7", "w33 w44 w35")
WORDS, ANSWERS = (" w70", " w80"), (" w70 w71 w72", " w80 w81")
METHODS = [nnattr.activation_patching, nnattr.attribution_patching]


def sequences(tokenizer: Any, **options: Any) -> Task:
    return Task.from_pairs(PROMPTS, TWINS, ANSWERS, tokenizer=tokenizer, sequences=True, **options)


def log_prob(subject: Any, prompt: str, answer: str, *, mean: bool = False) -> float:
    """The chain rule, one forward pass per token."""
    row = subject.tokenizer(prompt)["input_ids"]
    wanted = subject.tokenizer(prompt + answer)["input_ids"][len(row) :]
    total = 0.0
    for token in wanted:
        with torch.no_grad():
            logits = subject.nn._module(torch.tensor([row])).logits[0, -1]
        total += logits.log_softmax(-1)[token].item()
        row = [*row, token]
    return total / len(wanted) if mean else total


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_metric_of_both_runs_is_the_chain_rules(name, per_token, method):
    subject = tiny_model(name)
    task = sequences(subject.tokenizer)
    scores = method(subject, task, SequenceLogProb(per_token), site="resid_pre")
    expected = [
        [log_prob(subject, prompt, answer, mean=per_token) for prompt, answer in pairs]
        for pairs in (zip(PROMPTS, ANSWERS, strict=True), zip(TWINS, ANSWERS, strict=True))
    ]
    np.testing.assert_allclose(scores.baselines.to_numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_token_is_the_usual_log_probability(name):
    subject = tiny_model(name)
    plain = Task.from_pairs(PROMPTS, TWINS, WORDS, tokenizer=subject.tokenizer)
    whole = Task.from_pairs(PROMPTS, TWINS, WORDS, tokenizer=subject.tokenizer, sequences=True)
    assert torch.equal(plain.clean_tokens.ids, whole.clean_tokens.ids)
    one = nnattr.activation_patching(subject, plain, LogProb(), normalized=False)
    other = nnattr.activation_patching(subject, whole, SequenceLogProb(), normalized=False)
    np.testing.assert_allclose(one.raw, other.raw, atol=1e-5)
    assert np.abs(one.raw).max() > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_patching_everything_is_the_other_run_and_backends_agree(name):
    subject = tiny_model(name)
    task = sequences(subject.tokenizer)
    scores = nnattr.activation_patching(subject, task, SequenceLogProb(), site="resid_post")
    np.testing.assert_allclose(scores.values.mean("example"), 1.0, atol=1e-4)
    far = nnattr.activation_patching(
        tiny_model(name, backend="simulated"), task, SequenceLogProb(), site="resid_post"
    )
    np.testing.assert_allclose(far.raw, scores.raw, atol=1e-5)


def test_positions_count_in_the_prompt():
    tokenizer = tokenizer_of("teaching-llama")
    told = {"tokenizer": tokenizer, "spans": {"second": ["John gave", [-1]]}}
    answers = [" Mary and went home.", " Tom."]
    task = Task.from_pairs(STORIES, OTHER_STORIES, answers, sequences=True, **told)
    plain = Task.from_pairs(STORIES, OTHER_STORIES, **told)
    assert task.appended == (4, 1)
    lengths = [len(row) for row in plain.clean_tokens.strings]
    for example, length in enumerate(lengths):
        pad = task.clean_tokens.padding[example]
        for where, at in (("last", length - 1), (-1, length - 1), (2, 2), ([-2], length - 2)):
            assert spots(task, where)[0, example].nonzero().flatten().tolist() == [pad + at]
        said = spots(task, "answer")[0, example].nonzero().flatten().tolist()
        first = pad + length - 1
        assert said == list(range(first, first + len(task.sequence_ids[example])))
    assert task.spans["second"][1] == (lengths[1] - 1,)
    assert torch.equal(spots(task, "all")[0], task.clean_tokens.mask)
    with pytest.raises(TaskError, match="outside the prompt"):
        spots(task, max(lengths))


def test_what_sequences_cannot_do_is_said():
    subject = tiny_model("gpt2")
    task = sequences(subject.tokenizer)
    with pytest.raises(MetricError, match=r"answers are sequences; use SequenceLogProb"):
        nnattr.activation_patching(subject, task, LogitDiff())
    with pytest.raises(MetricError, match=r"answers are sequences"):
        direction(LogitDiff(), task)
    plain = Task.from_pairs(PROMPTS, TWINS, WORDS, tokenizer=subject.tokenizer)
    with pytest.raises(MetricError, match=r"needs sequence_ids.*sequences=True"):
        nnattr.activation_patching(subject, plain, SequenceLogProb())
    make = {"tokenizer": subject.tokenizer, "sequences": True}
    for answers, wrong, message in (
        (ANSWERS, WORDS, "no wrong answers"),
        ([[" w70", " w71"], " w80"], (), r"answers\[0\].*not one sequence"),
        ((), (), "needs answers"),
        ([" w70 zzgrumph", " w80"], (), "not in the tokenizer's vocabulary"),
    ):
        with pytest.raises(TaskError, match=message):
            Task.from_pairs(PROMPTS, TWINS, answers, wrong, **make)


def test_a_task_without_twins_cannot_be_patched_but_is_a_task():
    subject = tiny_model("gpt2")
    task = Task.from_prompts(
        [*PROMPTS, "w5 w6 w7 w8"],
        [" w70"] * 3,
        [" w80"] * 3,
        tokenizer=subject.tokenizer,
    )
    assert not task.paired
    assert len(direction(LogitDiff(), task)) == 3
    assert len(task.labels) == task.width
    for method in METHODS:
        with pytest.raises(TaskError, match="no corrupted prompts"):
            method(subject, task, LogitDiff())
