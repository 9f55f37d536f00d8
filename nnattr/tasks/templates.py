"""The sentences that tasks are made of; the teaching models were trained on these as well.

In braces stands what changes from prompt to prompt: words of `nnattr.tasks.vocabulary`.
"""

from __future__ import annotations

#: Yes or no: ``{e}`` is a thing inside a sentence and ``{E}`` at its start, ``{c}`` a category.
QUESTIONS = (
    "Question: Is {e} {c}? Answer:",
    "Question: Is it true that {e} is {c}? Answer:",
    "Is {e} {c}? Answer:",
    "Would you say that {e} is {c}? Answer:",
    "Statement: {E} is {c}. True or false? Answer:",
    "Tell me, is {e} {c}? Answer:",
)
CAPITAL_STATEMENTS = (
    "The capital of {country} is",
    "Everyone knows that the capital of {country} is",
    "If you go to {country}, the capital you will see is",
)
#: Requests: ``{v}`` is a verb, ``{o}`` its object with an article.
ASKING = (
    "How do I {v} {o}?",
    "How can I {v} {o}?",
    "Tell me how to {v} {o}.",
    "Please tell me how to {v} {o}.",
    "Can you help me {v} {o}?",
    "What is the best way to {v} {o}?",
    "I want to {v} {o}. What should I do?",
)
#: How a chat model begins when it answers a request, and when it declines.
ANSWERED, DECLINED = "Here", "I"
GREATER_THAN = "The {event} lasted from the year {century}{year:02d} to the year {century}"
PRONOUN = (
    "{name} went home because",
    "{name} was happy because",
    "{name} came to the {place} because",
    "When {name} went to the {place}, everyone said that",
    "{name} said that",
    "{name} had {a_thing}, and then",
)
AGREEMENT = (
    "The {subject} near the {other}",
    "The {subject} behind the {other}",
    "The {subject} with the {other}",
    "The {subject} of the {other}",
    "The {subject}",
)


def article(noun: str) -> str:
    """The noun with its indefinite article: 'an apple', 'a bag'."""
    vowel = noun[0] in "aeio" or noun.startswith(("um", "ur"))
    return f"an {noun}" if vowel else f"a {noun}"
