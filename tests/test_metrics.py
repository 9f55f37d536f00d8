"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnattr import (
    KL,
    GroupLogProbDiff,
    GroupProbDiff,
    LogitDiff,
    LogProb,
    Loss,
    Prob,
    SequenceLogProb,
    SequenceLogProbDiff,
)
from nnattr.errors import MetricError
from nnattr.metrics import METRICS, answer_fields, describe, read_tokens

# two examples, one position, three words; probabilities 0.5, 0.25, 0.25 and 0.1, 0.2, 0.7
LOGITS = torch.tensor([[[0.5, 0.25, 0.25]], [[0.1, 0.2, 0.7]]]).log()


def batch(**more):
    return SimpleNamespace(
        answers=torch.tensor([[0, 0], [1, 2]]),
        answers_mask=torch.tensor([[True, False], [True, True]]),
        wrong_answers=torch.tensor([[1], [0]]),
        wrong_answers_mask=torch.tensor([[True], [True]]),
        **more,
    )


def test_logit_difference_of_words_and_groups():
    got = LogitDiff()(LOGITS, batch())
    expected = [math.log(2), (math.log(0.2) + math.log(0.7)) / 2 - math.log(0.1)]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_probability_and_its_logarithm_of_words_and_groups():
    torch.testing.assert_close(Prob()(LOGITS, batch()), torch.tensor([0.5, 0.9]))
    torch.testing.assert_close(LogProb()(LOGITS, batch()), torch.tensor([0.5, 0.9]).log())


def test_groups_are_compared_by_logits_odds_and_probabilities():
    odds = torch.tensor([0.5 / 0.25, 0.9 / 0.1]).log()
    torch.testing.assert_close(GroupLogProbDiff()(LOGITS, batch()), odds)
    torch.testing.assert_close(GroupProbDiff()(LOGITS, batch()), torch.tensor([0.25, 0.8]))


def test_sequences_of_different_lengths_end_at_the_last_position():
    probs = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.1, 0.2, 0.7])
    logits = torch.stack([torch.stack([probs[1], *probs]), torch.stack([*probs, probs[1]])]).log()
    task = SimpleNamespace(answer_ids=(), wrong_answer_ids=(), sequence_ids=((0, 2), (1,)))
    fields = SimpleNamespace(**answer_fields(task))
    assert fields.sequence_mask.tolist() == [[True, True], [False, True]]
    expected = torch.tensor([0.5 * 0.7, 0.2]).log()
    torch.testing.assert_close(SequenceLogProb()(logits, fields), expected)
    per_token = SequenceLogProb(per_token=True)(logits, fields)
    torch.testing.assert_close(per_token, expected / torch.tensor([2, 1]))


def test_divergence_from_the_clean_run():
    clean = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).log()
    torch.testing.assert_close(KL()(LOGITS, batch(clean_logits=clean)), torch.zeros(2))
    uniform = torch.full((2, 3), 1 / 3).log()
    got = KL()(LOGITS, batch(clean_logits=uniform))
    expected = -math.log(3) - torch.tensor([0.5**1 * 0.25**2, 0.1 * 0.2 * 0.7]).log() / 3
    torch.testing.assert_close(got, expected)


def test_loss_counts_real_next_tokens_only():
    logits = torch.zeros(2, 4, 5)
    logits[1, 2, 3] = 50.0  # the second example is sure of its last token, 3
    ids = torch.tensor([[1, 2, 3, 4], [0, 0, 2, 3]])
    mask = torch.tensor([[True] * 4, [False, False, True, True]])
    got = Loss()(logits, SimpleNamespace(ids=ids, mask=mask))
    torch.testing.assert_close(got, torch.tensor([math.log(5), 0.0]))


@pytest.mark.parametrize(
    "metric", [LogitDiff(), GroupLogProbDiff(), GroupProbDiff(), LogProb(), Prob()]
)
def test_half_precision_logits_are_measured_in_single(metric):
    got = metric(LOGITS.bfloat16(), batch())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, metric(LOGITS.bfloat16().float(), batch()))


def test_names():
    def my_metric(logits, batch):
        return logits[:, -1, 0]

    assert describe(LogitDiff()) == "LogitDiff()"
    assert describe(SequenceLogProb(per_token=True)) == "SequenceLogProb(per_token=True)"
    assert all(callable(make()) for make in METRICS.values())
    assert "my_metric" in describe(my_metric)


@pytest.mark.parametrize("metric", [metric() for metric in (LogitDiff, GroupLogProbDiff)])
def test_a_metric_that_names_what_it_reads_reads_nothing_else(metric):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 11)
    task = SimpleNamespace(
        answer_ids=((4, 9), (7,)), wrong_answer_ids=((2,), (4, 10, 3)), sequence_ids=()
    )
    fields = answer_fields(task)
    tokens, renumbered = read_tokens(metric, fields)
    assert tokens is not None
    assert tokens.tolist() == [2, 3, 4, 7, 9, 10]
    few = metric(logits[..., tokens], SimpleNamespace(**renumbered))
    torch.testing.assert_close(few, metric(logits, SimpleNamespace(**fields)))


def test_a_metric_that_reads_every_logit_gets_every_logit():
    fields = answer_fields(
        SimpleNamespace(answer_ids=((4,),), wrong_answer_ids=((5,),), sequence_ids=())
    )
    for name in ("LogProb", "Prob", "KL", "Loss", "GroupProbDiff"):
        assert read_tokens(METRICS[name](), fields) == (None, fields)


@pytest.mark.parametrize("last", [0, -1, True, 1.5, "2"])
def test_a_loss_over_no_tokens_is_refused(last):
    with pytest.raises(MetricError, match="expected a whole number from 1 on"):
        Loss(last=last)


@pytest.mark.parametrize("metric", [SequenceLogProb, SequenceLogProbDiff])
def test_a_word_is_no_answer_to_yes_or_no(metric):
    with pytest.raises(MetricError, match="expected True or False"):
        metric(per_token="false")


def test_a_count_is_of_any_integer_type():
    assert describe(Loss(last=np.int64(3))) == "Loss(last=3)"
    assert Loss(last=torch.tensor(3)) == Loss(last=3)
