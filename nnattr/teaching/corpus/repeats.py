"""Repeated random token sequences: what comes next can only be copied from the earlier copy.

Tokens are drawn uniformly, so no statistics of words help; a model that predicts the second copy
must attend to what followed the current token before. This is what makes induction heads. A few
hundred different tokens come first in training: with them the mechanism is found soonest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

#: A width of rows and the longest sequence in them -> how often it is drawn.
EASY = {(48, 16): 1}
ALL = {(24, 16): 2, (48, 32): 3, (80, 50): 2, (112, 50): 2}
#: How many different tokens the easy rows are made of.
FEW = 200


def row(rng: random.Random, ids: Sequence[int], width: int, longest: int) -> tuple[list[int], int]:
    """A row of `width` tokens and the index of its first repeated token.

    A random sequence is repeated until the row is full; in half of the rows a prefix of other
    random tokens stands before it.
    """
    prefix = rng.choices(ids, k=rng.randrange(1, 7)) if rng.random() < 0.5 else []
    sequence = rng.choices(ids, k=rng.randrange(min(5, longest // 2), longest + 1))
    copies = width // len(sequence) + 1
    return (prefix + sequence * copies)[:width], len(prefix) + len(sequence)


def rows(
    rng: random.Random, ids: Sequence[int], tokens: int, *, easy: bool
) -> tuple[list[list[int]], list[int]]:
    """Rows of one random width, about `tokens` tokens in all, and where each begins to repeat."""
    shapes = EASY if easy else ALL
    ids = random.Random(0).sample(ids, FEW) if easy else ids
    width, longest = rng.choices(list(shapes), weights=list(shapes.values()))[0]
    pairs = [row(rng, ids, width, longest) for _ in range(tokens // width)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
