"""Repeated random token sequences: what comes next can only be copied from the earlier copy.

Tokens are drawn uniformly, so no statistics of words help; a model that predicts the second copy
must attend to what followed the current token before. This is what makes induction heads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Widths of a batch of rows, with their relative frequency; short rows teach the most per second.
WIDTHS = {24: 3, 48: 3, 80: 2, 112: 2}


def row(rng: random.Random, ids: Sequence[int], width: int) -> tuple[list[int], int]:
    """A row of `width` tokens and the index of its first repeated token.

    A random sequence is repeated until the row is full; in half of the rows a prefix of other
    random tokens stands before it.
    """
    prefix = rng.choices(ids, k=rng.randrange(1, 9)) if rng.random() < 0.5 else []
    length = rng.randrange(5, min(50, (width - len(prefix)) * 2 // 3) + 1)
    sequence = rng.choices(ids, k=length)
    copies = (width - len(prefix)) // length + 1
    return (prefix + sequence * copies)[:width], len(prefix) + length


def rows(rng: random.Random, ids: Sequence[int], tokens: int) -> tuple[list[list[int]], list[int]]:
    """Rows of one random width, about `tokens` tokens in all, and where each begins to repeat."""
    width = rng.choices(list(WIDTHS), weights=list(WIDTHS.values()))[0]
    pairs = [row(rng, ids, width) for _ in range(tokens // width)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
