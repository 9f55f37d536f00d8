"""Facts: capitals, and questions that are answered by several words for yes and for no."""

from __future__ import annotations

import random
from typing import Any, Literal

from nnattr.arguments import Positive, Seed, checked
from nnattr.errors import TaskError
from nnattr.tasks import vocabulary
from nnattr.tasks.generators.template import (
    Example,
    assembled,
    fill,
    required,
    usable,
    writable,
)
from nnattr.tasks.task import Task
from nnattr.tasks.templates import CAPITAL_STATEMENTS, QUESTIONS, article
from nnattr.tokens import Tokenizer


@checked
def facts(
    tokenizer: Tokenizer,
    *,
    n: Positive = 8,
    seed: Seed = 0,
    kind: Literal["yes_no", "capitals"] = "yes_no",
) -> Task:
    """Facts that a model must know.

    Args:
        tokenizer: words that change between the prompts of a pair are single tokens in it.
        n: number of pairs.
        seed: which facts and templates.
        kind: ``"yes_no"``: ``Question: Is the robin a bird? Answer:`` with groups of answers, six
            ways to say yes against five to say no (those that are single tokens). True and false
            claims alternate; the corrupted prompt makes the opposite claim about the same thing.
            Spans: ``subject``, ``claim``, ``end``. ``"capitals"``: ``The capital of France is``
            with another country in the corrupted prompt, whose capital is the wrong answer. Spans:
            ``country``, ``end``.

    Raises:
        TaskError: the tokenizer has too few of the words (they are listed), or ``n`` is below 1.
    """
    makers = {"yes_no": _yes_no, "capitals": _capitals}
    if kind not in makers:
        raise TaskError(f"kind is {kind!r}; facts has {', '.join(map(repr, makers))}.")
    examples = makers[kind](tokenizer, n, random.Random(seed))
    return assembled(tokenizer, examples, f"facts(n={n}, seed={seed}, kind={kind!r})")


def _yes_no(tokenizer: Any, n: int, draw: random.Random) -> list[Example]:
    yes = [
        f" {word}" for word in required(tokenizer, "facts", "words for yes", vocabulary.YES_WORDS)
    ]
    no = [f" {word}" for word in required(tokenizer, "facts", "words for no", vocabulary.NO_WORDS)]
    claims = required(tokenizer, "facts", "categories", tuple(vocabulary.ENTITIES), 2)
    things = {
        category: writable(tokenizer, "facts", category, vocabulary.ENTITIES[category])
        for category in claims
    }
    sample = _slots(things[claims[0]][0], claims[0])
    templates = usable(tokenizer, "facts", QUESTIONS, **sample, c=article(claims[0]))
    examples = []
    for i in range(n):
        category = draw.choice(claims)
        thing = draw.choice(things[category])
        other = draw.choice([claim for claim in claims if claim != category])
        said, unsaid = (category, other) if i % 2 == 0 else (other, category)
        template = draw.choice(templates)
        clean = fill(template, **_slots(thing, category), c=article(said))
        corrupted = fill(template, **_slots(thing, category), c=article(unsaid))
        subject = next(clean.slots[slot] for slot in "eE" if slot in clean.slots)
        examples.append(
            Example(
                clean.text,
                corrupted.text,
                yes if said == category else no,
                no if said == category else yes,
                {"subject": subject, "claim": clean.slots["c"]},
            )
        )
    return examples


def _slots(thing: str, category: str) -> dict[str, str]:
    """The thing as it stands inside a sentence, and as it opens one."""
    phrase = thing if category in vocabulary.BARE_CATEGORIES else f"the {thing}"
    return {"e": phrase, "E": phrase[0].upper() + phrase[1:]}


def _capitals(tokenizer: Any, n: int, draw: random.Random) -> list[Example]:
    countries = required(tokenizer, "facts", "countries", tuple(vocabulary.CAPITALS), 2)
    cities = required(tokenizer, "facts", "cities", tuple(vocabulary.CAPITALS.values()), 2)
    pairs = [
        (land, vocabulary.CAPITALS[land])
        for land in countries
        if vocabulary.CAPITALS[land] in cities
    ]
    templates = usable(tokenizer, "facts", CAPITAL_STATEMENTS, country=countries[0])
    examples = []
    for _ in range(n):
        (land, city), (other, wrong) = draw.sample(pairs, 2)
        template = draw.choice(templates)
        clean = fill(template, country=land)
        corrupted = fill(template, country=other).text
        examples.append(Example(clean.text, corrupted, [f" {city}"], [f" {wrong}"], clean.slots))
    return examples
