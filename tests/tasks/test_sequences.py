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
from nnattr.tasks.positions import labels, spots
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
    behind = max(lengths)  # a token of either answer
    for example, pad in enumerate(task.clean_tokens.padding):
        assert spots(task, behind)[0, example].nonzero().flatten().tolist() == [pad + behind]
    with pytest.raises(TaskError, match=r"outside the prompt .* and 1 of its answer behind"):
        spots(task, behind + 1)


def test_each_position_with_answers_behind_the_prompts():
    """Answers go on from the prompt; prompts of several lengths have no label for them."""
    tokenizer = tokenizer_of("teaching-llama")
    given, twins = ([side[0]] * 2 for side in (STORIES, OTHER_STORIES))
    answers = [" Mary and went home.", " Tom."]
    task = Task.from_pairs(given, twins, answers, tokenizer=tokenizer, sequences=True)
    assert labels(task) == tuple(range(task.width))
    for cell, label in zip(spots(task, "each"), labels(task), strict=True):
        for example, pad in enumerate(task.clean_tokens.padding):
            there = [pad + label] if label < task.lengths[example][1] else []
            assert cell[example].nonzero().flatten().tolist() == there
    mixed = sequences(tiny_model("gpt2").tokenizer)
    with pytest.raises(TaskError, match=r"'each' has no label.*3 to 5 tokens.*one length"):
        spots(mixed, "each")
    assert labels(mixed[:1]) == tuple(range(5 + 2))


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
        (ANSWERS, ANSWERS, r"answers\[0\] is also the wrong answer"),
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


WRONG = (" w73 w74", " w82 w83 w84")
EVEN = (" w73 w74 w75", " w82 w83")


def contrasts(tokenizer: Any, wrong: Any = WRONG, twins: Any = TWINS) -> Task:
    return Task.from_pairs(
        PROMPTS,
        twins,
        ANSWERS,
        wrong,
        tokenizer=tokenizer,
        sequences=True,
        spans={"second": [1, 1]},
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_two_answers_are_compared_by_plain_log_probabilities(name, per_token, method):
    subject = tiny_model(name)
    task = contrasts(subject.tokenizer)
    scores = method(subject, task, nnattr.SequenceLogProbDiff(per_token), site="resid_pre")
    expected = [
        [
            log_prob(subject, prompt, right, mean=per_token)
            - log_prob(subject, prompt, wrong, mean=per_token)
            for prompt, right, wrong in zip(prompts, ANSWERS, WRONG, strict=True)
        ]
        for prompts in (PROMPTS, TWINS)
    ]
    np.testing.assert_allclose(scores.baselines.to_numpy(), expected, atol=1e-4)
    assert np.abs(np.diff(expected, axis=0)).min() > 1e-3


@pytest.mark.parametrize("positions", ["all", "last", 1, "second", "answer"])
@pytest.mark.parametrize("call", ["patching", "attribution", "ablation", "together"])
def test_an_effect_on_the_difference_is_the_difference_of_the_effects(call, positions):
    subject = tiny_model("llama")
    tokenizer = subject.tokenizer
    calls: dict[str, Any] = {
        "patching": lambda *given: nnattr.activation_patching(
            *given, normalized=False, positions=positions
        ),
        "attribution": lambda *given: nnattr.attribution_patching(
            *given, normalized=False, positions=positions
        ),
        "ablation": lambda *given: nnattr.ablate(*given, positions=positions),
        "together": lambda *given: nnattr.ablate_together(*given, [(0, 1)], positions=positions),
    }
    both = calls[call](subject, contrasts(tokenizer), nnattr.SequenceLogProbDiff())
    sides = [
        calls[call](
            subject,
            Task.from_pairs(
                PROMPTS,
                TWINS,
                answers,
                tokenizer=tokenizer,
                sequences=True,
                spans={"second": [1, 1]},
            ),
            SequenceLogProb(),
        )
        for answers in (ANSWERS, WRONG)
    ]
    assert both.raw.dims == sides[0].raw.dims
    np.testing.assert_allclose(both.raw, sides[0].raw - sides[1].raw, atol=2e-5)
    assert np.abs(both.raw).max() > 1e-4


def test_cells_behind_the_prompt_need_answers_of_one_length():
    subject = tiny_model("gpt2")
    metric = nnattr.SequenceLogProbDiff()
    task = contrasts(subject.tokenizer, EVEN)
    each = nnattr.activation_patching(subject, task[[0]], metric, positions="each")
    assert each.raw.sizes["pos"] == task[[0]].width
    with pytest.raises(TaskError, match="are 3 and 2 tokens"):
        nnattr.activation_patching(
            subject, contrasts(subject.tokenizer)[[0]], metric, positions="each"
        )
    drawn = {"replacement": "resample", "dataset": [" ".join(f"w{at}" for at in range(50, 57))]}
    with pytest.raises(TaskError, match="two prompts would be drawn"):
        nnattr.ablate(subject, task[[0]], metric, **drawn)
    with pytest.raises(MetricError, match=r"wrong_sequence_ids.*wrong_answers"):
        nnattr.ablate(subject, sequences(subject.tokenizer), metric)


def test_a_task_with_two_answers_is_kept_in_a_file(tmp_path):
    task = contrasts(tiny_model("gpt2").tokenizer)
    again = Task.load(task.save(tmp_path / "task.json"))
    assert again.wrong_sequence_ids == task.wrong_sequence_ids
    assert again.hash == task.hash
    text = again.describe(2)
    assert "Wrong ones: 2 to 3 tokens" in text
    assert "wrong: ' w82 w83 w84' = 82, 83, 84" in text
    assert again.hash != sequences(tiny_model("gpt2").tokenizer, spans={"second": [1, 1]}).hash


def test_sentences_are_compared_as_wholes():
    subject = tiny_model("llama")
    good, bad = ["w3 w4 w5 w6", "w7 w8 w9"], ["w3 w4 w30 w31 w32", "w7 w40"]
    task = Task.from_sentences(good, bad, tokenizer=subject.tokenizer)
    scores = nnattr.ablate(subject, task, nnattr.SequenceLogProbDiff())

    def whole(sentence: str) -> float:
        ids = torch.tensor([subject.tokenizer(sentence)["input_ids"]])
        with torch.no_grad():
            known = subject.nn._module(ids).logits[0, :-1].log_softmax(-1)
        return known.gather(-1, ids[0, 1:, None]).sum().item()

    expected = [whole(one) - whole(other) for one, other in zip(good, bad, strict=True)]
    np.testing.assert_allclose(scores.baselines.to_numpy()[0], expected, atol=1e-4)
    with pytest.raises(TaskError, match="begin with different tokens"):
        Task.from_sentences(["w3 w4"], ["w5 w4"], tokenizer=subject.tokenizer)
    bos = Task.from_sentences(["The dog"], ["A dog"], tokenizer=tokenizer_of("teaching-llama"))
    assert bos.clean == ("<|begin|>",)
    assert [len(row) for row in bos.sequence_ids + bos.wrong_sequence_ids] == [2, 2]
