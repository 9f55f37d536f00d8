"""Templates filled with words that the tokenizer has, remembering where each word went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from nnattr.errors import TaskError
from nnattr.tasks.task import Task
from nnattr.tokens import continuations, encoded


@dataclass(frozen=True)
class Filled:
    """A prompt and, for each slot of its template, the characters that fill it (the first time)."""

    text: str
    slots: Mapping[str, slice]


@dataclass(frozen=True)
class Example:
    """One pair; ``spans`` are characters of the clean prompt, by name."""

    clean: str
    corrupted: str
    answers: Sequence[str]
    wrong_answers: Sequence[str] = ()
    spans: Mapping[str, slice] = field(default_factory=dict)


def fill(template: str, **words: Any) -> Filled:
    """The template with ``words`` in its slots."""
    text, slots = "", {}
    for literal, slot, spec, _ in Formatter().parse(template):
        text += literal
        if slot is not None:
            word = format(words[slot], spec or "")
            slots.setdefault(slot, slice(len(text), len(text) + len(word)))
            text += word
    return Filled(text, slots)


def assembled(tokenizer: Any, examples: Sequence[Example], name: str, **options: Any) -> Task:
    """The examples as a task, with their spans and the span ``end``, the last token."""
    spans: dict[str, list[Any]] = {
        key: [one.spans[key] for one in examples]
        for key in examples[0].spans
        if all(key in one.spans for one in examples)
    }
    return Task.from_pairs(
        [one.clean for one in examples],
        [one.corrupted for one in examples],
        [tuple(one.answers) for one in examples],
        [tuple(one.wrong_answers) for one in examples],
        tokenizer=tokenizer,
        spans={**spans, "end": [[-1]] * len(examples)},
        name=name,
        **options,
    )


def in_vocabulary(tokenizer: Any, words: Sequence[str], *, opening: bool = False) -> list[str]:
    """The words that are one known token each, after another word or ``opening`` a text."""
    if opening:
        (before,) = encoded(tokenizer, [""])
        rows = [row[len(before) :] for row in encoded(tokenizer, words)]
    else:
        rows = _after_the(tokenizer, words)
    unknown = tokenizer.unk_token_id
    return [
        word for word, row in zip(words, rows, strict=True) if len(row) == 1 and row[0] != unknown
    ]


def required(
    tokenizer: Any, task: str, what: str, words: Sequence[str], needed: int = 1
) -> list[str]:
    """The known ones of ``words``.

    Raises:
        TaskError: they are too few; the others are listed.
    """
    found = in_vocabulary(tokenizer, words)
    if len(found) >= needed:
        return found
    lacking = [word for word in words if word not in found]
    raise TaskError(
        f"The tokenizer has {len(found)} of the {what} as single tokens, and {task} needs "
        f"{needed}; it lacks {_listed(lacking)}. Build the task with Task.from_pairs from words "
        "that it has."
    )


def writable(tokenizer: Any, task: str, what: str, words: Sequence[str]) -> list[str]:
    """The words that the tokenizer can write, in any number of tokens.

    Raises:
        TaskError: there are none; they are listed.
    """
    rows = _after_the(tokenizer, words)
    unknown = tokenizer.unk_token_id
    found = [word for word, row in zip(words, rows, strict=True) if unknown not in row]
    if not found:
        raise TaskError(f"The tokenizer knows no {what}, and {task} needs one: {_listed(words)}.")
    return found


def _after_the(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """The tokens of each word in the midst of a text."""
    return continuations(tokenizer, ["The"] * len(words), [f" {word}" for word in words])


def _listed(words: Sequence[str]) -> str:
    rest = len(words) - 12
    return ", ".join(map(repr, words[:12])) + (f" and {rest} more" if rest > 0 else "")


def usable(tokenizer: Any, task: str, templates: Sequence[str], **words: Any) -> list[str]:
    """The templates that the tokenizer can write, filled with these words.

    Raises:
        TaskError: there are none; what is not known is listed.
    """
    texts = [fill(template, **words).text for template in templates]
    rows = encoded(tokenizer, texts)
    unknown = tokenizer.unk_token_id
    found = [one for one, row in zip(templates, rows, strict=True) if unknown not in row]
    if found:
        return found
    pieces = list(dict.fromkeys(word for text in texts for word in text.split()))
    alone = encoded(tokenizer, pieces)
    lacking = [piece for piece, row in zip(pieces, alone, strict=True) if unknown in row]
    raise TaskError(
        f"The tokenizer does not know the words of any {task} template; it lacks "
        f"{_listed(lacking)}. Build the task with Task.from_pairs."
    )
