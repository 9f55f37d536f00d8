"""What tests of edits ask about: pairs of two lengths, and a vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import nnattr
from nnattr import Model
from tests.oracles.metrics import logit_diff
from tests.oracles.patching import Pair


def vector(width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(3))


def unequal(model: Model, n: int) -> nnattr.Task:
    """Pairs of two lengths: two words stand before every third."""
    plain = nnattr.tasks.ioi(model.tokenizer, n=n, seed=0)
    clean, corrupted = (
        [("" if i % 3 else "Then, ") + text for i, text in enumerate(side)]
        for side in (plain.clean, plain.corrupted)
    )
    names = {
        name: [[at[0] + 2 * (i % 3 == 0)] for i, at in enumerate(plain.spans[name])]
        for name in ("IO", "S2")
    }
    answers = plain.answers, plain.wrong_answers
    return nnattr.Task.from_pairs(
        clean, corrupted, *answers, tokenizer=model.tokenizer, spans=names
    )


def pairs_of(question: Any) -> list[Pair]:
    found = []
    for i in range(len(question)):
        right, wrong = list(question.answer_ids[i]), list(question.wrong_answer_ids[i])
        clean, corrupted = (
            torch.tensor([tokens.rows[i]])
            for tokens in (question.clean_tokens, question.corrupted_tokens)
        )
        metric = lambda logits, ids, r=right, w=wrong: logit_diff(logits, ids, r, w)  # noqa: E731
        found.append(Pair(corrupted, clean, metric))
    return found
