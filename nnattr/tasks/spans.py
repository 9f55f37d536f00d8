"""Spans: names for positions, given as positions, as a text of the prompt, or as its characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nnattr.errors import TaskError
from nnattr.tasks.form import Form, IdGroups, Where
from nnattr.tokens import Tokens, characters


def placed_span(
    name: str,
    rows: Sequence[str | slice | Sequence[int]],
    given: Sequence[str],
    written: Sequence[str],
    tokens: Tokens,
    form: Form,
    where: Where,
) -> IdGroups:
    """A span's positions in each prompt, in order and from its first token."""
    if len(rows) != len(tokens):
        raise TaskError(f"The span {name!r} has {len(rows)} entries for {len(tokens)} prompts.")
    textual = any(isinstance(row, str | slice) for row in rows)
    maps = characters(form.tokenizer, written, verbatim=form.chat) if textual else []
    result = []
    for i, (row, strings) in enumerate(zip(rows, tokens.strings, strict=True)):
        if isinstance(row, str | slice):
            positions = _covering(name, row, given[i], written[i], maps[i], partial(where, name, i))
        else:
            positions = _inside(name, row, len(strings), written[i])
        result.append(positions)
    return tuple(result)


def _inside(name: str, row: Sequence[int], length: int, prompt: str) -> tuple[int, ...]:
    for position in row:
        if not -length <= position < length:
            raise TaskError(
                f"The span {name!r} names position {position} of {prompt!r}, which has {length} "
                "tokens."
            )
    return tuple(sorted({position % length for position in row}))


def _covering(
    name: str,
    row: str | slice,
    given: str,
    written: str,
    token_characters: Sequence[tuple[int, int]],
    place: Callable[[], str],
) -> tuple[int, ...]:
    """The tokens that stand for a text, or for a slice of characters, of the prompt as given."""
    if isinstance(row, str):
        if not row or given.count(row) != 1:
            raise TaskError(
                f"{place()}: the span {name!r} is {row!r}, which occurs {given.count(row)} times "
                f"in {given!r}; expected once. Give positions instead."
            )
        start, stop = given.index(row), given.index(row) + len(row)
    else:
        start, stop, _ = row.indices(len(given))
    shift = written.find(given)
    found = tuple(
        i
        for i, (first, end) in enumerate(token_characters)
        if first < stop + shift and end > start + shift and first < end
    )
    if shift < 0 or start >= stop or not found:
        raise TaskError(f"{place()}: no token of {written!r} stands for the span {name!r}.")
    return found
