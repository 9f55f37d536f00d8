"""Repeated random tokens: the plainest work of an induction head."""

from __future__ import annotations

import random
from typing import Literal

from nnattr.arguments import Positive, Seed, checked
from nnattr.errors import TaskError
from nnattr.tasks import vocabulary
from nnattr.tasks.generators.template import Example, assembled, required
from nnattr.tasks.task import Task
from nnattr.tokens import Tokenizer

WORDS = tuple(
    dict.fromkeys(
        (*vocabulary.OBJECTS, *vocabulary.PLACES, *vocabulary.ADJECTIVES, *vocabulary.NAMES)
    )
)


@checked
def repeated_tokens(
    tokenizer: Tokenizer,
    *,
    n: Positive = 8,
    seed: Seed = 0,
    length: int = 10,
    corruption: Literal["swap", "random"] = "swap",
) -> Task:
    """A random sequence and its beginning again: what comes next can only be copied.

    Words are drawn without replacement, so nothing but the first copy tells the answer. Spans:
    ``source`` (the token to copy, in the first copy), ``previous`` (the one before it, which is
    also the prompt's last token), ``end``.

    Args:
        tokenizer: only words that are single tokens in it are drawn.
        n: number of pairs.
        seed: which words.
        length: tokens of one copy.
        corruption: ``"swap"`` puts another word in the place of the source, so that this becomes
            the one to copy; ``"random"`` replaces the whole first copy by other words. Either way
            the wrong answer is the word that stands where the source stood.

    Raises:
        TaskError: the tokenizer has too few of the words (they are listed), ``n`` is below 1, or
            ``length`` below 2.
    """
    if length < 2:
        raise TaskError(f"repeated_tokens needs length >= 2, not {length}.")
    vocabulary = required(tokenizer, "repeated_tokens", "words", WORDS, 2 * length)
    draw = random.Random(seed)
    examples = []
    for _ in range(n):
        drawn = draw.sample(vocabulary, 2 * length)
        sequence, others = drawn[:length], drawn[length:]
        twin = [*sequence[:-1], others[-1]] if corruption == "swap" else others
        second = _text(sequence[:-1])
        before, source = len(_text(sequence[:-2])), len(second)
        spans = {
            "source": slice(source, len(_text(sequence))),
            "previous": slice(before, source),
        }
        examples.append(
            Example(
                _text(sequence) + second,
                _text(twin) + second,
                [f" {sequence[-1]}"],
                [f" {twin[-1]}"],
                {name: slice(part.start + 1, part.stop) for name, part in spans.items()},
            )
        )
    name = f"repeated_tokens(n={n}, seed={seed}, length={length}, corruption={corruption!r})"
    return assembled(tokenizer, examples, name)


def _text(sequence: list[str]) -> str:
    return "".join(f" {word}" for word in sequence)
