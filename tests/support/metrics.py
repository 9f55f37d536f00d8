"""A metric of each kind, one of a user's own, and some that are none."""

from __future__ import annotations

from typing import Any

import torch

from nnattr import KL, LogitDiff, LogProb, Loss, Prob


def entropy(logits: Any, batch: Any) -> Any:
    """A metric of a user's own: how undecided the model is."""
    return torch.special.entr(logits[:, -1].softmax(-1)).sum(-1)


METRICS = {
    "LogitDiff": LogitDiff(),
    "LogProb": LogProb(),
    "Prob": Prob(),
    "KL": KL(),
    "Loss": Loss(),
    "entropy": entropy,
}


def one_number(logits: Any, batch: Any) -> Any:
    return logits[:, -1].mean()


def per_token(logits: Any, batch: Any) -> Any:
    return logits[:, -1]


def as_list(logits: Any, batch: Any) -> Any:
    return logits[:, -1, 0].tolist()
