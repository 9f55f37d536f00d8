"""Spans: names for positions, given as positions, as a text of the prompt, or as its characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import index

from nnattr.errors import TaskError
from nnattr.tasks.form import Form, IdGroups, Span, Where
from nnattr.tokens import Prompt, Tokens, characters


def placed_span(
    name: str,
    rows: Sequence[Span],
    given: Sequence[Prompt],
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
            place = partial(where, name, i)
            result.append(_covering(name, row, given[i], written[i], maps[i], form, place))
        else:
            positions = [row] if isinstance(row, int) else list(row)
            result.append(_inside(name, positions, len(strings), written[i]))
    return tuple(result)


def _inside(name: str, row: Sequence[int], length: int, prompt: str) -> tuple[int, ...]:
    for position in map(index, row):
        if not -length <= position < length:
            raise TaskError(
                f"The span {name!r} names position {position} of {prompt!r}, which has {length} "
                "tokens."
            )
    return tuple(sorted({position % length for position in row}))


def _covering(
    name: str,
    row: str | slice,
    given: Prompt,
    written: str,
    token_characters: Sequence[tuple[int, int]],
    form: Form,
    place: Callable[[], str],
) -> tuple[int, ...]:
    """The tokens that stand for a text, or for a slice of characters, of the prompt as given."""
    if not isinstance(given, str):
        raise TaskError(
            f"{place()}: the span {name!r} is {row!r}, and the prompt was given as token ids; give "
            "positions instead."
        )
    start, stop = _found(name, row, given, place)
    shift = form.shift(given, written)
    if shift is None:
        raise TaskError(
            f"{place()}: the chat template writes {given!r} in other words, {written!r}, so the "
            f"span {name!r} cannot be found. Give positions instead."
        )
    found = tuple(
        i
        for i, (first, end) in enumerate(token_characters)
        if first < stop + shift and end > start + shift and first < end
    )
    if start >= stop or not found:
        raise TaskError(f"{place()}: no token of {written!r} stands for the span {name!r}.")
    return found


def _found(name: str, row: str | slice, given: str, place: Callable[[], str]) -> tuple[int, int]:
    """The characters of the prompt as given that a span stands for."""
    if isinstance(row, slice):
        start, stop, _ = row.indices(len(given))
        return start, stop
    if not row or given.count(row) != 1:
        raise TaskError(
            f"{place()}: the span {name!r} is {row!r}, which occurs {given.count(row)} times "
            f"in {given!r}; expected once. Give positions instead."
        )
    return given.index(row), given.index(row) + len(row)
