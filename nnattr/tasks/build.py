"""Making a task: texts and words are checked and encoded, mistakes named where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nnattr.errors import TaskError
from nnattr.tasks.answers import appended, as_groups, sequences_of, single_tokens, spaced
from nnattr.tasks.form import Answers, Form, Spans, Unusable, Where, encodable
from nnattr.tasks.spans import placed_span
from nnattr.tokens import Prompt, Tokens, encode


def build(
    clean: Sequence[Prompt],
    corrupted: Sequence[Prompt] | None,
    answers: Answers,
    wrong_answers: Answers,
    *,
    form: Form,
    spans: Spans,
    leading_space: bool,
    sequences: bool,
    unusable: Unusable,
    where: Where = "{}[{}]".format,
) -> dict[str, Any]:
    """The fields of a task."""
    given = {"clean": _texts("clean", clean, where)}
    if corrupted is not None:
        given["corrupted"] = _texts("corrupted", corrupted, where)
    words = {
        "answers": as_groups("answers", answers, where),
        "wrong_answers": as_groups("wrong_answers", wrong_answers, where),
    }
    if leading_space:
        words = {what: spaced(groups) for what, groups in words.items()}
    _same_length(**given, **{what: groups for what, groups in words.items() if groups})
    written = {side: form.written(prompts) for side, prompts in given.items()}
    tokens = {
        side: encode(
            form.tokenizer,
            encodable(given[side], texts),
            verbatim=form.chat,
            place=partial(where, side),
        )
        for side, texts in written.items()
    }
    if corrupted is not None:
        _aligned(written["clean"], written["corrupted"], tokens, where)
    placed = {
        name: placed_span(
            name, rows, given["clean"], written["clean"], tokens["clean"], form, where
        )
        for name, rows in spans.items()
    }
    choose = sequences_of if sequences else single_tokens
    chosen = choose(written["clean"], words, form, unusable, where)
    if sequences:
        tokens, said = appended(tokens, chosen["sequence_ids"], form.tokenizer)
        placed = {"answer": said, **placed}
    return {
        "clean": written["clean"],
        "corrupted": written.get("corrupted", ()),
        "clean_tokens": tokens["clean"],
        "twin_tokens": tokens.get("corrupted"),
        "spans": placed,
        "chat": form.chat,
        "from_ids": not all(isinstance(one, str) for side in given.values() for one in side),
        "bos": form.tokenizer.bos_token,
        **chosen,
    }


def _texts(what: str, given: Sequence[Prompt], where: Where) -> tuple[Prompt, ...]:
    if isinstance(given, str):
        raise TaskError(f"{what} is one string, {given[:40]!r}; expected a list of prompts.")
    for i, item in enumerate(given):
        ids = isinstance(item, list | tuple) and all(type(token) is int for token in item)
        if not isinstance(item, str) and not ids:
            raise TaskError(
                f"{where(what, i)} holds {item!r}; expected a prompt, as a string or as token ids."
            )
    if not len(given):
        raise TaskError(f"{what} is empty; a task needs at least one prompt.")
    return tuple(item if isinstance(item, str) else tuple(item) for item in given)


def _same_length(**lists: Sequence[Any]) -> None:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise TaskError(f"These need one entry per example, but their lengths are {lengths}.")


def _aligned(
    clean: Sequence[str], corrupted: Sequence[str], tokens: Mapping[str, Tokens], where: Where
) -> None:
    sides = (tokens["clean"].strings, tokens["corrupted"].strings)
    for i, (left, right, a, b) in enumerate(zip(clean, corrupted, *sides, strict=True)):
        if len(a) != len(b):
            split = next(
                (k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)),
            )
            raise TaskError(
                f"Pair {i} is misaligned ({where('corrupted', i)}): the clean prompt {left!r} has "
                f"{len(a)} tokens and the corrupted prompt {right!r} has {len(b)}. They first "
                f"differ at position {split}: {list(a[split : split + 4])} against "
                f"{list(b[split : split + 4])}. Use words of the same number of tokens, or "
                "corrupted=None for a task that is not patched."
            )
