"""A task in words: what the model really sees, for a terminal of 80 columns."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from nnattr.tasks.examples import Examples

#: Columns of a terminal, and of one token's text.
WIDTH, TOKEN = 80, 22
#: How many answers and dropped things are shown.
SHOWN = 12


class Description(str):
    """A text that shows itself as it is, also where only its ``repr`` is shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def described(task: Examples, examples: int) -> Description:
    """The task as a whole, then some of its examples; see `Task.describe`."""
    lines = [f"{task!r}", _start(task), _padding(task), _answers(task), *_dropped(task)]
    for i in range(min(examples, len(task))):
        lines += ["", *_example(task, i)]
    return Description("\n".join(part for line in lines for part in _folded(line)))


def cell_label(task: Examples, position: int) -> str:
    """What a plot writes at a position, which may be negative; see `Task.labels`."""
    own = [length + position if position < 0 else position for length, _ in task.lengths]
    there = [(i, at) for i, at in enumerate(own) if 0 <= at < task.lengths[i][1]]
    both = (task.clean_tokens, task.twin_tokens or task.clean_tokens)
    seen = [{side.strings[i][at] for i, at in there} for side in both]
    if seen[0] == seen[1] and len(seen[0]) == 1:
        return seen[0].pop()
    if len(task) == 1:
        return "|".join(side.pop() for side in seen)
    named = (key for key, rows in task.spans.items() if all(map(operator.contains, rows, own)))
    return next((f"[{key}]" for key in named), "…")


def _start(task: Examples) -> str:
    author = "the chat template" if task.chat else "the tokenizer"
    if task.bos is None:
        return f"BOS: the tokenizer has none; {author} puts nothing before a prompt."
    begins = sum(row[0] == task.bos for row in task.clean_tokens.strings)
    if begins == len(task):
        return f"BOS: {author} puts {task.bos!r} first; it counts as position 0."
    if begins:
        return f"BOS: {task.bos!r} stands before {begins} of {len(task)} prompts only."
    return f"BOS: none; {author} does not put {task.bos!r} before a prompt."


def _padding(task: Examples) -> str:
    lengths = [len(row) for row in task.clean_tokens.strings]
    if min(lengths) == max(lengths):
        return f"Padding: none; every prompt has {max(lengths)} tokens."
    return (
        f"Padding: on the left, to {max(lengths)} tokens (the shortest prompt has {min(lengths)}); "
        "masked."
    )


def _answers(task: Examples) -> str:
    if task.sequence_ids:
        sizes = _range([len(row) for row in task.sequence_ids])
        other = _range([len(row) for row in task.wrong_sequence_ids])
        against = f" Wrong ones: {other} tokens." if task.wrong_sequence_ids else ""
        return (
            f"Answers: sequences of {sizes} tokens, said after the prompt (marked with >).{against}"
        )
    if not task.answer_ids:
        return "Answers: none."
    sides = [
        _range([len(row) for row in side]) for side in (task.answer_ids, task.wrong_answer_ids)
    ]
    return f"Answers: {sides[0]} right and {sides[1]} wrong words for each prompt."


def _range(sizes: list[int]) -> str:
    if not sizes:
        return "no"
    return f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"


def _dropped(task: Examples) -> list[str]:
    if not task.dropped:
        return []
    total = sum(drop.count for drop in task.dropped)
    shown = [
        f"  {_cut(repr(drop.what), 40)} {drop.why}"
        + (f" ({drop.count}x)" if drop.count > 1 else "")
        for drop in task.dropped[:SHOWN]
    ]
    rest = len(task.dropped) - len(shown)
    return [f"Dropped: {total}", *shown, *([f"  ... and {rest} more"] if rest else [])]


def _example(task: Examples, i: int) -> list[str]:
    """One prompt or pair, a line per token."""
    title = f"Example {i}"
    pad = task.clean_tokens.padding[i]
    lines = [title + (f" (after {pad} padding tokens)" if pad else "")]
    clean = list(zip(task.clean_tokens.strings[i], task.clean_tokens.rows[i], strict=True))
    twins = task.twin_tokens
    other = clean if twins is None else list(zip(twins.strings[i], twins.rows[i], strict=True))
    lines.append(" pos  clean" + ("" if twins is None else " " * (TOKEN + 5) + "corrupted"))
    prompt = len(clean) - task.appended[i]
    for position, (mine, theirs) in enumerate(zip(clean, other, strict=True)):
        names = " ".join(key for key, rows in task.spans.items() if position in rows[i])
        differs = mine[1] != theirs[1]
        mark = ">" if position >= prompt else "≠" if differs else " "
        twin = _token(*theirs) if differs else ""
        side = "" if twins is None else f" {twin:<{TOKEN + 7}}"
        row = f"{position:4d}{mark} {_token(*mine)}{side} {names}"
        lines.append(row.rstrip())
    for what, words, ids in (
        ("answer", task.answers, task.answer_ids or task.sequence_ids),
        ("wrong", task.wrong_answers, task.wrong_answer_ids or task.wrong_sequence_ids),
    ):
        if words:
            lines.append(f"{what}: {_some(words[i])} = {_some(ids[i])}")
    return lines


def _some(items: Sequence[Any]) -> str:
    rest = len(items) - SHOWN
    more = f", ... and {rest} more" if rest > 0 else ""
    return ", ".join(map(repr, items[:SHOWN])) + more


def _token(text: str, token: int) -> str:
    return f"{_cut(repr(text), TOKEN):<{TOKEN}} {token:>6}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _folded(line: str) -> list[str]:
    """The line in pieces that fit the terminal, continued with an indent."""
    pieces = []
    while len(line) > WIDTH:
        at = line.rfind(" ", WIDTH // 2, WIDTH + 1)
        at = at if at > 0 else WIDTH
        pieces.append(line[:at].rstrip())
        line = "      " + line[at:].lstrip()
    return [*pieces, line]
