"""Two small tasks of grammar: pronouns that fit a name, verbs that fit their subject."""

from __future__ import annotations

import random

from nnattr.arguments import Positive, Seed, checked
from nnattr.errors import TaskError
from nnattr.tasks import vocabulary
from nnattr.tasks.generators.template import (
    Example,
    assembled,
    fill,
    in_vocabulary,
    required,
    usable,
)
from nnattr.tasks.task import Task
from nnattr.tasks.templates import AGREEMENT, PRONOUN, article
from nnattr.tokens import Tokenizer


@checked
def gendered_pronoun(tokenizer: Tokenizer, *, n: Positive = 8, seed: Seed = 0) -> Task:
    """A name and the pronoun that stands for it: ``Mary went home because`` -> `` she``.

    The corrupted prompt has a name of the other gender, whose pronoun is the wrong answer. Spans:
    ``name``, ``end``.

    Args:
        tokenizer: names, places and objects are used only if they are single tokens in it.
        n: number of pairs, of both genders in turn.
        seed: which names and templates.

    Raises:
        TaskError: the tokenizer has too few of the words (they are listed), or ``n`` is below 1.
    """
    places = required(tokenizer, "gendered_pronoun", "places", vocabulary.PLACES)
    objects = required(tokenizer, "gendered_pronoun", "objects", vocabulary.OBJECTS)
    inside = [
        required(tokenizer, "gendered_pronoun", f"{gender} names", names)
        for gender, names in (("female", vocabulary.FEMALE_NAMES), ("male", vocabulary.MALE_NAMES))
    ]
    opening = [in_vocabulary(tokenizer, names, opening=True) for names in inside]
    sample = {"name": inside[0][0], "place": places[0], "a_thing": article(objects[0])}
    templates = [
        template
        for template in usable(tokenizer, "gendered_pronoun", PRONOUN, **sample)
        if all(opening) or not template.startswith("{name}")
    ]
    if not templates:
        raise TaskError("The tokenizer has no names that are single tokens where a text begins.")
    draw = random.Random(seed)
    examples = []
    for i in range(n):
        template = draw.choice(templates)
        names = opening if template.startswith("{name}") else inside
        told = {"place": draw.choice(places), "a_thing": article(draw.choice(objects))}
        mine, other = (draw.choice(names[gender]) for gender in (i % 2, 1 - i % 2))
        clean = fill(template, name=mine, **told)
        corrupted = fill(template, name=other, **told).text
        right, wrong = (" she", " he") if i % 2 == 0 else (" he", " she")
        spans = {"name": clean.slots["name"]}
        examples.append(Example(clean.text, corrupted, [right], [wrong], spans))
    return assembled(tokenizer, examples, f"gendered_pronoun(n={n}, seed={seed})")


@checked
def subject_verb(tokenizer: Tokenizer, *, n: Positive = 8, seed: Seed = 0) -> Task:
    """Agreement across a distracting noun: ``The keys near the cabinet`` -> `` are``.

    The corrupted prompt has the subject in the other number, whose verb is the wrong answer. Spans:
    ``subject``, ``distractor``, ``end``.

    Args:
        tokenizer: nouns are used only if both their forms are single tokens in it.
        n: number of pairs, plural and singular in turn.
        seed: which nouns and templates.

    Raises:
        TaskError: the tokenizer has too few of the words (they are listed), or ``n`` is below 1.
    """
    plurals = required(
        tokenizer, "subject_verb", "plural nouns", tuple(vocabulary.NOUNS.values()), 2
    )
    singulars = required(tokenizer, "subject_verb", "singular nouns", tuple(vocabulary.NOUNS), 2)
    nouns = [
        (word, vocabulary.NOUNS[word]) for word in singulars if vocabulary.NOUNS[word] in plurals
    ]
    sample = {"subject": nouns[0][0], "other": nouns[0][1]}
    distracting = [template for template in AGREEMENT if "{other}" in template]
    templates = usable(tokenizer, "subject_verb", distracting, **sample)
    draw = random.Random(seed)
    examples = []
    for i in range(n):
        subject, distractor = draw.sample(nouns, 2)
        template, other = draw.choice(templates), draw.choice(distractor)
        plural = i % 2 == 0
        clean = fill(template, subject=subject[plural], other=other)
        corrupted = fill(template, subject=subject[not plural], other=other).text
        right, wrong = (" are", " is") if plural else (" is", " are")
        spans = {"subject": clean.slots["subject"], "distractor": clean.slots["other"]}
        examples.append(Example(clean.text, corrupted, [right], [wrong], spans))
    return assembled(tokenizer, examples, f"subject_verb(n={n}, seed={seed})")
