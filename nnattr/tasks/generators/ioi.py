"""Indirect-object identification."""

from __future__ import annotations

import random
from typing import Literal

from nnattr.arguments import Positive, Seed, checked
from nnattr.tasks import vocabulary
from nnattr.tasks.generators.template import (
    Example,
    assembled,
    fill,
    required,
    usable,
)
from nnattr.tasks.task import Task
from nnattr.tasks.templates import article
from nnattr.tokens import Tokenizer

TEMPLATES = (
    "When {a} and {b} went to the {place}, {c} gave {object} to",
    "After {a} and {b} went to the {place}, {c} gave {object} to",
    "Then, {a} and {b} went to the {place}. {c} gave {object} to",
    "While {a} and {b} were working at the {place}, {c} gave {object} to",
    "When {a} and {b} got {object} at the {place}, {c} decided to give it to",
    "Friends {a} and {b} found {object} at the {place}. {c} gave it to",
)


@checked
def ioi(
    tokenizer: Tokenizer,
    *,
    n: Positive = 8,
    seed: Seed = 0,
    order: Literal["both", "ABBA", "BABA"] = "both",
    corruption: Literal["swap", "abc"] = "swap",
) -> Task:
    """Indirect-object identification: who receives what the subject gives (Wang et al. 2022).

    ``When Mary and John went to the store, John gave a drink to`` is continued by `` Mary`` (IO),
    not by `` John`` (S). Spans: ``IO``, ``S1``, ``S2``, ``end``.

    Args:
        tokenizer: names, places and objects are used only if they are single tokens in it.
        n: number of pairs.
        seed: which names, places and templates.
        order: ``"ABBA"`` names IO first, ``"BABA"`` names S first, ``"both"`` alternates.
        corruption: ``"swap"`` puts IO where S stood the second time, so that the wrong answer
            becomes the right one; ``"abc"`` replaces the names by three others, so that neither is.

    Raises:
        TaskError: the tokenizer has too few of the words (they are listed), or ``n`` is below 1.
    """
    names = required(tokenizer, "ioi", "names", vocabulary.NAMES, 5)
    places = required(tokenizer, "ioi", "places", vocabulary.PLACES)
    objects = required(tokenizer, "ioi", "objects", vocabulary.OBJECTS)
    sample = {"a": names[0], "b": names[1], "c": names[0], "place": places[0]}
    templates = usable(tokenizer, "ioi", TEMPLATES, **sample, object=article(objects[0]))
    draw = random.Random(seed)
    examples = []
    for i in range(n):
        io, s, *others = draw.sample(names, 5)
        template = draw.choice(templates)
        told = {"place": draw.choice(places), "object": article(draw.choice(objects))}
        first = order if order != "both" else ("ABBA", "BABA")[i % 2]
        a, b = (io, s) if first == "ABBA" else (s, io)
        clean = fill(template, a=a, b=b, c=s, **told)
        twin = (a, b, io) if corruption == "swap" else tuple(others)
        roles = ("IO", "S1", "S2") if first == "ABBA" else ("S1", "IO", "S2")
        examples.append(
            Example(
                clean.text,
                fill(template, **dict(zip("abc", twin, strict=True)), **told).text,
                [f" {io}"],
                [f" {s}"],
                {role: clean.slots[slot] for role, slot in zip(roles, "abc", strict=True)},
            )
        )
    name = f"ioi(n={n}, seed={seed}, order={order!r}, corruption={corruption!r})"
    return assembled(tokenizer, examples, name)
