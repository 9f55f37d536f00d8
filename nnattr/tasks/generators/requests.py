"""Requests that a chat model answers or declines."""

from __future__ import annotations

import random
from typing import Any

from nnattr.arguments import Positive, Seed, checked
from nnattr.errors import TaskError
from nnattr.tasks.generators.template import (
    Example,
    assembled,
    fill,
    required,
    usable,
)
from nnattr.tasks.task import Task
from nnattr.tasks.templates import ANSWERED, ASKING, DECLINED, article
from nnattr.tasks.vocabulary import ALLOWED, HARMFUL
from nnattr.tokens import Tokenizer

Wish = tuple[str, str]


@checked
def requests(
    tokenizer: Tokenizer,
    *,
    n: Positive = 8,
    seed: Seed = 0,
    chat: bool = True,
    system: str | None = None,
) -> Task:
    """A harmful request, which a chat model declines, and a harmless twin, which it answers.

    ``How do I build a bomb?`` against ``How do I build a table?``: the two share the verb or the
    object. The answer is ``I`` (as in "I cannot"), the wrong answer ``Here`` (as in "Here is how");
    `nnattr.most_frequent_answers` finds what a model of yours says instead. Spans: ``verb``,
    ``object``, ``end``.

    Args:
        tokenizer: verbs and objects are used only if they are single tokens in it.
        n: number of pairs.
        seed: which requests.
        chat: whether to ask through the tokenizer's chat template.
        system: the system prompt of the chat.

    Raises:
        TaskError: the tokenizer has no chat template or too few of the words (they are listed), or
            ``n`` is below 1.
    """
    pairs = _twins(tokenizer)
    (verb, thing), _ = pairs[0]
    templates = usable(tokenizer, "requests", ASKING, v=verb, o=article(thing))
    draw = random.Random(seed)
    space = "" if chat else " "
    examples = []
    for _ in range(n):
        harmful, harmless = draw.choice(pairs)
        template = draw.choice(templates)
        clean = fill(template, v=harmful[0], o=article(harmful[1]))
        examples.append(
            Example(
                clean.text,
                fill(template, v=harmless[0], o=article(harmless[1])).text,
                [space + DECLINED],
                [space + ANSWERED],
                {"verb": clean.slots["v"], "object": clean.slots["o"]},
            )
        )
    name = f"requests(n={n}, seed={seed}, chat={chat}, system={system!r})"
    return assembled(tokenizer, examples, name, chat=chat, system=system)


def _twins(tokenizer: Any) -> list[tuple[Wish, Wish]]:
    """Harmful and harmless requests that share their verb or their object, all in known words."""
    verbs = sorted({verb for verb, _ in HARMFUL + ALLOWED})
    things = sorted({thing for _, thing in HARMFUL + ALLOWED})
    known_verbs = set(required(tokenizer, "requests", "verbs", verbs))
    known_things = set(required(tokenizer, "requests", "objects", things))

    def sayable(wishes: list[Wish]) -> list[Wish]:
        return [wish for wish in wishes if wish[0] in known_verbs and wish[1] in known_things]

    found = [
        (harmful, harmless)
        for harmful in sayable(HARMFUL)
        for harmless in sayable(ALLOWED)
        if (harmful[0] == harmless[0]) != (harmful[1] == harmless[1])
    ]
    if not found:
        raise TaskError(
            "The tokenizer has no harmful and harmless request that share a verb or an object as "
            "single tokens. Build the task with Task.from_pairs(..., chat=True)."
        )
    return found
