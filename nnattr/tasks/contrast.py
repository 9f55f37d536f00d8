"""A task read twice: once with its right answers behind the prompts, once with the wrong ones.

Two answers of several tokens cannot stand behind one prompt in one run. So a metric that compares
them is measured in both readings, and their difference taken (`nnattr.jobs.frame`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from nnattr.tasks.answers import continued, predicted_at
from nnattr.tasks.examples import Examples
from nnattr.tokens import Tokens

T = TypeVar("T", bound=Examples)


def both_readings(task: T) -> T:
    """Twice the examples: first as they are, then with the wrong answers in place of the right."""
    wrong = _with_wrong_answers(task)
    twins = None
    if task.twin_tokens is not None and wrong.twin_tokens is not None:
        twins = _joined(task.twin_tokens, wrong.twin_tokens)
    return replace(
        task,
        clean=task.clean * 2,
        corrupted=task.corrupted * 2,
        answers=task.answers + task.wrong_answers,
        wrong_answers=task.wrong_answers + task.answers,
        clean_tokens=_joined(task.clean_tokens, wrong.clean_tokens),
        twin_tokens=twins,
        spans={name: rows + wrong.spans[name] for name, rows in task.spans.items()},
        sequence_ids=task.sequence_ids + task.wrong_sequence_ids,
        wrong_sequence_ids=task.wrong_sequence_ids + task.sequence_ids,
    )


def before_answers(task: Examples, tokens: Tokens) -> Tokens:
    """The prompts of a task without the answers that stand behind them."""
    ends = [length for length, _ in task.lengths]
    rows = [row[:end] for row, end in zip(tokens.rows, ends, strict=True)]
    strings = [row[:end] for row, end in zip(tokens.strings, ends, strict=True)]
    return Tokens.from_rows(rows, strings, int(tokens.ids[0, 0]))


def shared_beginning(good: Sequence[int], bad: Sequence[int]) -> int:
    """How many tokens two sentences begin with in common, with at least one of each left over."""
    most = min(len(good), len(bad)) - 1
    return next((i for i in range(most) if good[i] != bad[i]), max(most, 0))


def uneven(task: Examples) -> int | None:
    """The first example whose two answers differ in their number of tokens, or None."""
    pairs = zip(task.sequence_ids, task.wrong_sequence_ids, strict=True)
    return next((i for i, (one, other) in enumerate(pairs) if len(one) != len(other)), None)


def _with_wrong_answers(task: T) -> T:
    """The task with its wrong answers behind the prompts."""
    sides = {"clean": task.clean_tokens, "twin": task.twin_tokens}
    bare = {name: before_answers(task, side) for name, side in sides.items() if side is not None}
    said = [tuple(map(str, row)) for row in task.wrong_sequence_ids]  # nobody reads these texts
    longer = {name: continued(one, task.wrong_sequence_ids, said, 0) for name, one in bare.items()}
    predicted = predicted_at(bare["clean"], task.wrong_sequence_ids)
    return replace(
        task,
        clean_tokens=longer["clean"],
        twin_tokens=longer.get("twin"),
        spans={**task.spans, "answer": predicted},
    )


def _joined(one: Tokens, other: Tokens) -> Tokens:
    return Tokens.from_rows([*one.rows, *other.rows], [*one.strings, *other.strings], 0)
