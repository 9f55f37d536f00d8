"""The metrics, written out for one unpadded example: (logits [pos, vocab], ids [pos]) -> scalar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Metric = Callable[[Tensor, Tensor], Tensor]


def metric_of(name: str, right: Sequence[int], wrong: Sequence[int], clean: Tensor) -> Metric:
    """The metric called ``name``; ``clean`` are the clean run's logits [pos, vocab]."""
    known: dict[str, Metric] = {
        "LogitDiff": partial(logit_diff, right=list(right), wrong=list(wrong)),
        "LogProb": partial(log_prob, right=list(right)),
        "Prob": partial(prob, right=list(right)),
        "KL": partial(kl, clean=clean.detach()),
        "Loss": loss,
        "entropy": entropy,
    }
    return known[name]


def logit_diff(logits: Tensor, ids: Tensor, right: list[int], wrong: list[int]) -> Tensor:
    last = logits[-1]
    return sum(last[i] for i in right) / len(right) - sum(last[i] for i in wrong) / len(wrong)


def log_prob(logits: Tensor, ids: Tensor, right: list[int]) -> Tensor:
    return prob(logits, ids, right).log()


def prob(logits: Tensor, ids: Tensor, right: list[int]) -> Tensor:
    return logits[-1].softmax(-1)[right].sum()


def kl(logits: Tensor, ids: Tensor, clean: Tensor) -> Tensor:
    p = clean[-1].softmax(-1)
    return (p * (p.log() - logits[-1].softmax(-1).log())).sum()


def loss(logits: Tensor, ids: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:-1], ids[1:])


def entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits[-1]).entropy()
