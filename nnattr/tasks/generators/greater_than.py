"""Greater-than: a span of years must end after it began."""

from __future__ import annotations

import random
from typing import Any

from nnattr.arguments import Positive, Seed, checked
from nnattr.errors import TaskError
from nnattr.tasks import vocabulary
from nnattr.tasks.generators.template import (
    Example,
    assembled,
    fill,
    required,
    usable,
)
from nnattr.tasks.task import Task
from nnattr.tasks.templates import GREATER_THAN
from nnattr.tokens import Tokenizer, continuations


@checked
def greater_than(tokenizer: Tokenizer, *, n: Positive = 8, seed: Seed = 0) -> Task:
    """Greater-than: ``The war lasted from the year 1732 to the year 17`` (Hanna et al. 2023).

    The answers are all two-digit numbers above 32, the wrong answers all others, so that
    `nnattr.GroupProbDiff` is the paper's metric. The corrupted prompt begins in the year 01, after
    which almost any number fits. Spans: ``event``, ``year`` (the two digits), ``end``.

    Args:
        tokenizer: used years are two tokens in it, the century and two digits.
        n: number of pairs.
        seed: which events and years.

    Raises:
        TaskError: the tokenizer writes no year so or lacks the words, or ``n`` is below 1.
    """
    events = required(tokenizer, "greater_than", "events", vocabulary.EVENTS)
    sample = {"event": events[0], "century": vocabulary.CENTURIES[0], "year": 10}
    (template,) = usable(tokenizer, "greater_than", [GREATER_THAN], **sample)
    years = _years(tokenizer)
    draw = random.Random(seed)
    examples = []
    for _ in range(n):
        century, year = draw.choice(years)
        told = {"event": draw.choice(events), "century": century}
        clean = fill(template, **told, year=year)
        examples.append(
            Example(
                clean.text,
                fill(template, **told, year=1).text,
                [f"{later:02d}" for later in range(year + 1, 100)],
                [f"{other:02d}" for other in range(year + 1)],
                {key: clean.slots[key] for key in ("event", "year")},
            )
        )
    return assembled(tokenizer, examples, f"greater_than(n={n}, seed={seed})")


def _years(tokenizer: Any) -> list[tuple[str, int]]:
    """The years (and the first year of their century) that are a century and two digits."""
    every = [(century, year) for century in vocabulary.CENTURIES for year in range(1, 98)]
    texts = [f" {century}{year:02d}" for century, year in every]
    rows = continuations(tokenizer, ["the year"] * len(every), texts)
    whole = {
        one
        for one, row in zip(every, rows, strict=True)
        if len(row) == 2
        and tokenizer.unk_token_id not in row
        and tokenizer.decode(row[1:]) == f"{one[1]:02d}"
    }
    found = [(century, year) for century, year in every if year > 1 and (century, year) in whole]
    found = [(century, year) for century, year in found if (century, 1) in whole]
    if not found:
        raise TaskError(
            "The tokenizer writes no year as a century and two digits, for instance "
            f"{tokenizer.tokenize(' 1732')}, and greater_than needs that. Build the task with "
            "Task.from_pairs."
        )
    return found
