"""Groups of answers: the mean of logits and the probability can disagree in sign.

The factual-knowledge notebook found it: with "No" at 95 % the mean-logit difference was barely
positive, because the other ways to say no are very improbable ones.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from nnattr import KL, GroupLogProbDiff, GroupProbDiff, LogitDiff, LogProb, Loss, Prob, Task, tasks
from nnattr.errors import MetricError
from nnattr.metrics import METRICS, answer_fields, direction
from tests.tasks.common import PROMPTS, TEACHING, model, tokenizer_of

LINEAR, LOG, PROB = LogitDiff(), GroupLogProbDiff(), GroupProbDiff()


def fields(right: list[list[int]], wrong: list[list[int]]) -> SimpleNamespace:
    task = SimpleNamespace(answer_ids=right, wrong_answer_ids=wrong, sequence_ids=())
    return SimpleNamespace(**answer_fields(task))


def test_the_notebooks_case_with_numbers_worked_out_by_hand():
    """No 95 %, Sure 3 %, Yes 1 %; "nope" and "wrong" are next to impossible."""
    probs = torch.tensor([[[0.95, 1e-8, 1e-8, 0.03, 0.01, 0.01 - 2e-8]]])
    batch = fields([[0, 1, 2]], [[3, 4]])
    linear = (math.log(0.95) + 2 * math.log(1e-8)) / 3 - (math.log(0.03) + math.log(0.01)) / 2
    assert linear < -8
    assert LINEAR(probs.log(), batch).item() == pytest.approx(linear, abs=1e-3)
    assert LOG(probs.log(), batch).item() == pytest.approx(math.log(0.95 / 0.04), abs=1e-3)
    assert PROB(probs.log(), batch).item() == pytest.approx(0.91, abs=1e-3)


LOGITS = st.lists(st.floats(-8, 8), min_size=8, max_size=8)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(values=LOGITS, sizes=SIZES)
def test_the_two_probability_metrics_agree_in_sign_always(values, sizes):
    logits = torch.tensor([[values]])
    batch = fields([list(range(sizes[0]))], [list(range(4, 4 + sizes[1]))])
    log, prob = LOG(logits, batch).item(), PROB(logits, batch).item()
    assume(abs(log) > 1e-3 and abs(prob) > 1e-6)
    assert (log > 0) == (prob > 0)


@given(values=LOGITS)
def test_for_single_words_they_are_the_logit_difference(values):
    logits = torch.tensor([[values]])
    batch = fields([[2]], [[5]])
    torch.testing.assert_close(LOG(logits, batch), LINEAR(logits, batch), atol=1e-4, rtol=1e-4)


class OneExample(SimpleNamespace):
    def __len__(self) -> int:
        return 1


@given(values=LOGITS, sizes=SIZES)
def test_the_direction_weighs_the_logits_to_the_metric(values, sizes):
    right, wrong = list(range(sizes[0])), list(range(4, 4 + sizes[1]))
    task = OneExample(
        answers=[["a"]],
        wrong_answers=[["b"]],
        answer_ids=[right],
        wrong_answer_ids=[wrong],
        sequence_ids=(),
    )
    (weights,) = direction(LINEAR, task)
    assert sum(weights.values()) == pytest.approx(0)
    found = LINEAR(torch.tensor([[values]]), fields([right], [wrong])).item()
    assert sum(values[i] * weight for i, weight in weights.items()) == pytest.approx(
        found, abs=1e-4
    )


@pytest.mark.parametrize(
    ("metric", "near"),
    [
        (LOG, "LogitDiff"),
        (PROB, "LogitDiff"),
        (LogProb(), "LogitDiff"),
        (Prob(), "LogitDiff"),
        (KL(), "LogitDiff"),
        (Loss(), "LogitDiff"),
        (lambda logits, batch: logits[:, -1, 0], "LogitDiff"),
    ],
)
def test_what_is_not_linear_has_no_direction_and_names_what_has(metric, near):
    task = tasks.facts(tokenizer_of("teaching-gpt2"), n=2)
    with pytest.raises(MetricError, match=rf"is not linear.*linear metric is {near}\(\)"):
        direction(metric, task)
    assert near in METRICS


def test_a_direction_needs_both_sides():
    task = Task.from_prompts(PROMPTS, [" Mary", " Tom"], tokenizer=tokenizer_of("teaching-gpt2"))
    with pytest.raises(MetricError, match="needs wrong_answers"):
        direction(LogitDiff(), task)
    with pytest.raises(MetricError, match="pass an instance"):
        direction(LogitDiff, task)


@pytest.mark.parametrize("name", TEACHING)
def test_the_teaching_model_shows_it_too(name):
    """A group with words that the model never says: right by probability, wrong by mean logit.

    The notebook's groups were such lists: every way to say yes that came to mind.
    """
    subject = model(name)
    facts = tasks.facts(subject.tokenizer, n=40, seed=0).filter(subject)
    unsaid = tuple(
        f" {word}" for word in ("piano", "basketball", "river", "castle", "camera", "map")
    )
    listed = [(*group, *unsaid) for group in facts.answers]
    question = Task.from_prompts(
        facts.clean, listed, facts.wrong_answers, tokenizer=subject.tokenizer
    )
    asked = tuple(
        a + b for a, b in zip(question.answer_ids, question.wrong_answer_ids, strict=True)
    )
    found = subject.predict(question.clean_tokens, asked=asked)
    logits = found.asked[:, -1] - found.log_norm
    odds, means = [], []
    for i, row in enumerate(logits):
        n = len(question.answer_ids[i])
        right, wrong = row[:n], row[n : len(asked[i])]
        odds.append((right.logsumexp(0) - wrong.logsumexp(0)).item())
        means.append((right.mean() - wrong.mean()).item())
    assert all(value > 0 for value in odds), "the group is the more probable one, every time"
    assert sum(value < 0 for value in means) >= 3, "and its mean logit says otherwise"
