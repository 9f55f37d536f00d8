"""Yes/no facts: whether an entity belongs to a category, asked after it was stated elsewhere.

Statements ("The robin is a bird.") teach the category of every entity. Questions ("Question: Is
the robin a bird? Answer:") are answered by one of several words for yes or for no, uniformly.
Held-out entities occur in statements only, so answering a question about one of them means
using a fact that was learnt in another form.
"""

from __future__ import annotations

import random

from nnattr.tasks.templates import CAPITAL_STATEMENTS, QUESTIONS, article
from nnattr.tasks.vocabulary import BARE_CATEGORIES, CAPITALS, ENTITIES, NO_WORDS, YES_WORDS
from nnattr.teaching.corpus.document import Document, pick_heldout

#: category -> the entities about which training never asks.
HELDOUT: dict[str, frozenset[str]] = {
    category: pick_heldout(entities, 3 / 16) for category, entities in ENTITIES.items()
}
#: What comes before a fact is stated, and what states it.
STATEMENTS = (
    ("{E} is", " {c}"),
    ("I know that {e} is", " {c}"),
    ("Everyone can see that {e} is", " {c}"),
    ("It is true that {e} is", " {c}"),
    ("We all learned that {e} is", " {c}"),
    ("One {k} that we like is", " {e}"),
    ("My favorite {k} is", " {e}"),
    ("There is {c} called", " {n}"),
)
LIKENESS = (
    ("{E} is like", " {e}"),
    ("We like {e} and", " {e}"),
    ("{E} is of one kind with", " {e}"),
)
CAPITAL_QUESTION = "Question: Is {city} the capital of {country}? Answer:"


def _phrase(entity: str, category: str) -> str:
    return entity if category in BARE_CATEGORIES else f"the {entity}"


def fill(template: str, entity: str, category: str, claim: str) -> str:
    """The template about `entity` (of `category`), claiming that it is a `claim`."""
    phrase = _phrase(entity, category)
    opening = phrase[0].upper() + phrase[1:]
    return template.format(E=opening, e=phrase, c=article(claim), k=claim, n=entity)


def _entity(rng: random.Random) -> tuple[str, str]:
    category = rng.choice(tuple(ENTITIES))
    return rng.choice(ENTITIES[category]), category


def statement(rng: random.Random) -> Document:
    """A true sentence about any entity, held out from questions or not, or about a capital."""
    if rng.randrange(6) == 0:
        country = rng.choice(tuple(CAPITALS))
        prompt = rng.choice(CAPITAL_STATEMENTS).format(country=country)
        return Document(prompt, f" {CAPITALS[country]}", ".")
    entity, category = _entity(rng)
    prompt, answer = (fill(part, entity, category, category) for part in rng.choice(STATEMENTS))
    return Document(prompt, answer, ".")


def likeness(rng: random.Random) -> Document:
    """A sentence that puts any entity beside another one of its category."""
    category = rng.choice(tuple(ENTITIES))
    first, second = rng.sample(ENTITIES[category], 2)
    before, after = rng.choice(LIKENESS)
    prompt = fill(before, first, category, category)
    return Document(prompt, fill(after, second, category, category), ".")


def question(rng: random.Random, entity: str, category: str, *, truth: bool) -> Document:
    """A question about `entity` whose answer is yes (`truth`) or no."""
    others = [other for other in ENTITIES if other != category]
    claim = category if truth else rng.choice(others)
    prompt = fill(rng.choice(QUESTIONS), entity, category, claim)
    return Document(prompt, f" {rng.choice(YES_WORDS if truth else NO_WORDS)}", ".")


def _capital_question(rng: random.Random) -> Document:
    hidden = HELDOUT["country"] | HELDOUT["city"]
    pairs = [pair for pair in CAPITALS.items() if not hidden & set(pair)]
    country, capital = rng.choice(pairs)
    city = capital if rng.random() < 0.5 else rng.choice(pairs)[1]
    prompt = CAPITAL_QUESTION.format(city=city, country=country)
    return Document(prompt, f" {rng.choice(YES_WORDS if city == capital else NO_WORDS)}", ".")


def training(rng: random.Random) -> Document:
    """A training question about an entity that is not held out.

    In a quarter of the texts the fact is stated just before.
    """
    if rng.randrange(8) == 0:
        return _capital_question(rng)
    entity, category = _asked_entity(rng)
    asked = question(rng, entity, category, truth=rng.random() < 0.5)
    return _reminded(asked, entity, category) if rng.randrange(4) == 0 else asked


def reminder(rng: random.Random) -> Document:
    """A question just after the statement that answers it: this teaches what is to be compared."""
    entity, category = _asked_entity(rng)
    asked = question(rng, entity, category, truth=rng.random() < 0.5)
    return _reminded(asked, entity, category)


def _asked_entity(rng: random.Random) -> tuple[str, str]:
    entity, category = _entity(rng)
    while entity in HELDOUT[category]:
        entity, category = _entity(rng)
    return entity, category


def _reminded(asked: Document, entity: str, category: str) -> Document:
    fact = fill("{E} is {c}.", entity, category, category)
    return Document(f"{fact} {asked.prompt}", asked.answer, asked.tail)


def heldout(rng: random.Random) -> Document:
    """A test question about an entity that training only states facts about."""
    category = rng.choice(tuple(ENTITIES))
    entity = rng.choice(sorted(HELDOUT[category]))
    return question(rng, entity, category, truth=rng.random() < 0.5)
