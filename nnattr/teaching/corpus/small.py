"""A small share of other things language models are studied for, and plain sentences.

Greater-than ("The war lasted from the year 1732 to the year 17" -> a larger number), gendered
pronouns ("Mary went home because" -> " she") and subject-verb agreement across a distracting
noun ("The keys near the cabinet" -> " are"). Their accuracies are reported, not required.
"""

from __future__ import annotations

import random

from nnattr.tasks.templates import AGREEMENT, GREATER_THAN, PRONOUN, article
from nnattr.tasks.vocabulary import (
    ADJECTIVES,
    CENTURIES,
    EVENTS,
    FEMALE_NAMES,
    MALE_NAMES,
    NOUNS,
    OBJECTS,
    PEOPLE,
    PLACES,
    TRANSITIVE_VERBS,
)
from nnattr.teaching.corpus.document import Document

PRONOUN_TAILS = (" was tired.", " was late.", " had {a_thing}.", " wanted to go home.")
SENTENCES = (
    "The {person} {verb} the {thing}.",
    "A {person} {verb} the {thing} at the {place}.",
    "The {adjective} {person} {verb} {a_thing}.",
    "The {person} was {adjective} and the {thing} was {other}.",
    "Every day the {person} walks to the {place}.",
    "There is {a_thing} in the {place}.",
    "My {thing} is {adjective}.",
    "They like the {adjective} {place}.",
    "We saw {a_thing} and the {person} {verb} it.",
)


def greater_than(rng: random.Random) -> Document:
    """A span of years whose last two digits must exceed the first ones'."""
    year = rng.randrange(2, 98)
    prompt = GREATER_THAN.format(event=rng.choice(EVENTS), century=rng.choice(CENTURIES), year=year)
    return Document(prompt, f"{rng.randrange(year + 1, 100):02d}", ".")


def pronoun(rng: random.Random) -> Document:
    """A name, and the pronoun that stands for it."""
    female = rng.random() < 0.5
    name = rng.choice(FEMALE_NAMES if female else MALE_NAMES)
    words = {"place": rng.choice(PLACES), "a_thing": article(rng.choice(OBJECTS))}
    prompt = rng.choice(PRONOUN).format(name=name, **words)
    right, wrong = (" she", " he") if female else (" he", " she")
    return Document(prompt, right, rng.choice(PRONOUN_TAILS).format(**words), wrong)


def agreement(rng: random.Random) -> Document:
    """A subject, a distracting noun of either number, and the verb that fits the subject."""
    singular, other = rng.sample(sorted(NOUNS), 2)
    plural = rng.random() < 0.5
    subject = NOUNS[singular] if plural else singular
    other = NOUNS[other] if rng.random() < 0.5 else other
    prompt = rng.choice(AGREEMENT).format(subject=subject, other=other)
    right, wrong = (" are", " is") if plural else (" is", " are")
    return Document(prompt, right, f" {rng.choice(ADJECTIVES)}.", wrong)


def sentence(rng: random.Random) -> Document:
    """A plain sentence."""
    thing = rng.choice(OBJECTS)
    adjective, other = rng.sample(ADJECTIVES, 2)
    text = rng.choice(SENTENCES).format(
        person=rng.choice(PEOPLE),
        verb=rng.choice(TRANSITIVE_VERBS),
        thing=thing,
        a_thing=article(thing),
        place=rng.choice(PLACES),
        adjective=adjective,
        other=other,
    )
    return Document("", text)
