"""The seeded training corpus: a mixture of small tasks, one file per idea.

`texts(seed, mixture)` yields the structured texts for ever; the same seed gives the same texts.
Repeated random tokens (`repeats`) are made of token ids, not of text, and join in training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from nnattr.teaching.corpus import facts, ioi, requests, small
from nnattr.teaching.corpus.document import Document

__all__ = ["MIXTURES", "Document", "facts", "ioi", "requests", "small", "texts"]

#: What a text is about, with its share in percent, in each course of training.
MIXTURES: dict[str, dict[Callable[[random.Random], Document], int]] = {
    "everything": {
        ioi.training: 32,
        facts.statement: 18,
        facts.training: 28,
        requests.training: 8,
        small.greater_than: 4,
        small.pronoun: 4,
        small.agreement: 3,
        small.sentence: 3,
    },
    "reminders": {
        ioi.training: 20,
        facts.statement: 10,
        facts.reminder: 60,
        requests.training: 4,
        small.greater_than: 2,
        small.pronoun: 2,
        small.agreement: 2,
    },
    "facts": {
        ioi.training: 16,
        facts.statement: 20,
        facts.likeness: 12,
        facts.training: 40,
        requests.training: 4,
        small.greater_than: 3,
        small.pronoun: 2,
        small.agreement: 2,
        small.sentence: 1,
    },
    "statements": {
        ioi.training: 14,
        facts.statement: 28,
        facts.likeness: 24,
        facts.training: 24,
        requests.training: 4,
        small.greater_than: 2,
        small.pronoun: 2,
        small.agreement: 1,
        small.sentence: 1,
    },
}


def texts(seed: int, mixture: str = "everything") -> Iterator[Document]:
    """Training texts without end, drawn from a mixture."""
    rng = random.Random(seed)
    makers, shares = list(MIXTURES[mixture]), list(MIXTURES[mixture].values())
    while True:
        yield rng.choices(makers, weights=shares)[0](rng)
