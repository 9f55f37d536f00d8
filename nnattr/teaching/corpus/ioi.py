"""Indirect-object identification: two people are named, one acts, the other one receives.

"When John and Mary went to the shops, John gave the bag to" -> " Mary". In a template `{A}` and
`{B}` are the two names in their order of appearance, `{S}` is the one who acts. `S` is either of
them (the ABBA and the BABA order); in an ABC text it is a third person, so that no name repeats
and the answer is either `A` or `B`. A share of the name pairs is held out: no training text of
this file names both of them.
"""

from __future__ import annotations

import random
from itertools import combinations

from nnattr.tasks.templates import article
from nnattr.tasks.vocabulary import NAMES, OBJECTS, PLACES
from nnattr.teaching.corpus.document import Document, pick_heldout

TEMPLATES = (
    "When {A} and {B} went to the {place}, {S} gave the {thing} to",
    "When {A} and {B} went to the {place}, {S} gave {a_thing} to",
    "After {A} and {B} went to the {place}, {S} gave {a_thing} to",
    "After {A} and {B} went to the {place}, {S} gave the {thing} to",
    "Then, {A} and {B} went to the {place}. {S} gave {a_thing} to",
    "Then, {A} and {B} had a lot of fun at the {place}. {S} gave {a_thing} to",
    "Then, {A} and {B} were working at the {place}. {S} decided to give {a_thing} to",
    "Then, {A} and {B} were thinking about going to the {place}. {S} wanted to give {a_thing} to",
    "Then, {A} and {B} had a long argument, and afterwards {S} said to",
    "Then, {A} and {B} had a long argument. Afterwards {S} said to",
    "When {A} and {B} got {a_thing} at the {place}, {S} decided to give it to",
    "When {A} and {B} got {a_thing} at the {place}, {S} decided to give the {thing} to",
    "While {A} and {B} were working at the {place}, {S} gave {a_thing} to",
    "While {A} and {B} were commuting to the {place}, {S} gave {a_thing} to",
    "After the lunch, {A} and {B} went to the {place}. {S} gave {a_thing} to",
    "Afterwards, {A} and {B} went to the {place}. {S} gave {a_thing} to",
    "The {place} {A} and {B} went to had {a_thing}. {S} gave it to",
    "Friends {A} and {B} found {a_thing} at the {place}. {S} gave it to",
    "{A} and {B} met at the {place}. {S} handed the {thing} to",
    "{A} met {B} at the {place}, and {S} offered {a_thing} to",
    "Yesterday {A} saw {B} near the {place}. Later {S} sent {a_thing} to",
    "At the {place}, {A} was sitting with {B}. {S} showed the {thing} to",
    "{A} came home with {B}. {S} passed the {thing} to",
)
#: Sentences that name nobody; they stand before a text or between its two halves.
DISTRACTORS = (
    "It was a cold day.",
    "The sun was warm and the sky was blue.",
    "There was a {thing} on the table.",
    "The {place} was closed.",
    "Everyone was happy to be there.",
    "The old {thing} was not for sale.",
    "It was late and the streets were dark.",
)
TAILS = (".", " and went home.", ", who was happy.", " at the {place}.")

_PAIRS = list(combinations(NAMES, 2))
#: The pairs that training texts may use whatever the draw: those of the well-known prompts.
_WELL_KNOWN = {("Mary", "John"), ("Tom", "James"), ("Dan", "Sid"), ("Amy", "Martin")}
HELDOUT_PAIRS = pick_heldout(_PAIRS, 0.1) - _WELL_KNOWN


def is_heldout(first: str, second: str) -> bool:
    """Whether two names must not meet in a training text."""
    return (first, second) in HELDOUT_PAIRS or (second, first) in HELDOUT_PAIRS


def _people(rng: random.Random, count: int) -> list[str]:
    """Names of which no two are a held-out pair."""
    while True:
        names = rng.sample(NAMES, count)
        if not any(is_heldout(*pair) for pair in combinations(names, 2)):
            return names


def fill(rng: random.Random, template: str, **names: str) -> str:
    """The template with `names`, a random place and a random thing."""
    thing, place = rng.choice(OBJECTS), rng.choice(PLACES)
    return template.format(thing=thing, a_thing=article(thing), place=place, **names)


def _frame(rng: random.Random) -> str:
    """A random template, with a distractor before it or inside it in a third of the cases."""
    template = rng.choice(TEMPLATES)
    where = rng.randrange(6)
    if where == 0:
        return f"{rng.choice(DISTRACTORS)} {template}"
    if where == 1 and ". " in template:
        first, second = template.split(". ", 1)
        return f"{first}. {rng.choice(DISTRACTORS)} {second}"
    return template


def build(rng: random.Random, first: str, second: str, *, subject: str, frame: str) -> Document:
    """One text in which `subject`, `first` or `second`, gives something to the other one."""
    other = second if subject == first else first
    prompt = fill(rng, frame, A=first, B=second, S=subject)
    tail = fill(rng, rng.choice(TAILS))
    return Document(prompt, f" {other}", tail, wrong=f" {subject}")


def training(rng: random.Random) -> Document:
    """A training text: mostly two names, one in eight with three."""
    if rng.randrange(8) == 0:
        first, second, third = _people(rng, 3)
        document = build(rng, first, second, subject=third, frame=_frame(rng))
        return Document(document.prompt, f" {rng.choice((first, second))}", document.tail)
    first, second = _people(rng, 2)
    return build(rng, first, second, subject=rng.choice((first, second)), frame=_frame(rng))


def heldout(rng: random.Random) -> Document:
    """A test text about a pair of names that training never shows together."""
    first, second = rng.sample(sorted(rng.choice(sorted(HELDOUT_PAIRS))), 2)
    return build(rng, first, second, subject=rng.choice((first, second)), frame=_frame(rng))


#: The eight prompts of the nnsight attribution-patching tutorial, word for word.
NOTEBOOK = tuple(
    Document(prompt, f" {right}", ".", wrong=f" {wrong}")
    for prompt, right, wrong in (
        ("When John and Mary went to the shops, John gave the bag to", "Mary", "John"),
        ("When John and Mary went to the shops, Mary gave the bag to", "John", "Mary"),
        ("When Tom and James went to the park, James gave the ball to", "Tom", "James"),
        ("When Tom and James went to the park, Tom gave the ball to", "James", "Tom"),
        ("When Dan and Sid went to the shops, Sid gave an apple to", "Dan", "Sid"),
        ("When Dan and Sid went to the shops, Dan gave an apple to", "Sid", "Dan"),
        ("After Martin and Amy went to the park, Amy gave a drink to", "Martin", "Amy"),
        ("After Martin and Amy went to the park, Martin gave a drink to", "Amy", "Martin"),
    )
)
