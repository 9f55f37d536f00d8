"""The seeded training corpus: a mixture of small tasks, one file per idea.

`texts(seed)` yields the structured texts for ever; the same seed gives the same texts. Repeated
random tokens (`repeats`) are made of token ids, not of text, and join in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from nnattr.teaching.corpus import facts, ioi, requests, small
from nnattr.teaching.corpus.document import Document

__all__ = ["MIXTURE", "Document", "facts", "ioi", "requests", "small", "texts"]

#: What a text is about, with its share in percent.
MIXTURE = {
    ioi.training: 36,
    facts.statement: 18,
    facts.training: 18,
    requests.training: 14,
    small.greater_than: 4,
    small.pronoun: 4,
    small.agreement: 3,
    small.sentence: 3,
}


def texts(seed: int) -> Iterator[Document]:
    """Training texts without end, drawn from the mixture."""
    rng = random.Random(seed)
    makers, shares = list(MIXTURE), list(MIXTURE.values())
    while True:
        yield rng.choices(makers, weights=shares)[0](rng)
