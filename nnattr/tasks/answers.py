"""The answers of a task: groups of single tokens, or sequences that stand after the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nnattr.errors import TaskError
from nnattr.tasks.form import Answers, Drop, Form, Groups, IdGroups, Unusable, Where
from nnattr.tokens import (
    Tokens,
    answer_flaw,
    continuations,
    pad_id,
    token_strings,
    warn_of_glued,
)


def as_groups(what: str, given: Answers, where: Where) -> Groups:
    """One group of words for each example; a single word is a group of one."""
    if isinstance(given, str):
        raise TaskError(f"{what} is one string, {given!r}; expected one answer per pair, a list.")
    groups = []
    for i, item in enumerate(given):
        group = (item,) if isinstance(item, str) else item
        if not isinstance(group, list | tuple) or not group:
            raise TaskError(f"{where(what, i)} is {item!r}; expected a word or a list of words.")
        if not all(isinstance(word, str) and word for word in group):
            raise TaskError(f"{where(what, i)} is {item!r}; expected a word or a list of words.")
        groups.append(tuple(group))
    return tuple(groups)


def single_tokens(
    prompts: Sequence[str],
    words: Mapping[str, Groups],
    form: Form,
    unusable: Unusable,
    where: Where,
) -> dict[str, Any]:
    """The words of both sides that are single tokens, their ids, and what was dropped."""
    if unusable not in ("refuse", "drop"):
        raise TaskError(f"unusable is {unusable!r}; expected 'refuse' or 'drop'.")
    kept: dict[str, Groups] = {}
    ids: dict[str, IdGroups] = {}
    drops: Counter[tuple[str, str]] = Counter()
    for what, groups in words.items():
        flat = [(i, word) for i, group in enumerate(groups) for word in group]
        added = continuations(
            form.tokenizer,
            [prompts[i] for i, _ in flat],
            [word for _, word in flat],
            verbatim=form.chat,
        )
        rows: list[dict[int, str]] = [{} for _ in groups]
        for (i, word), found in zip(flat, added, strict=True):
            flaw = answer_flaw(form.tokenizer, word, found)
            if not flaw and found[0] in rows[i]:
                flaw = f"is the same token as {rows[i][found[0]]!r}"
            if flaw and unusable == "refuse":
                raise TaskError(
                    f"{where(what, i)}: the answer {word!r} to {prompts[i]!r} {flaw}. (Leave such "
                    "words out with unusable='drop'; sequences=True is for whole answers.)"
                )
            if flaw:
                drops[word, flaw] += 1
            else:
                rows[i][found[0]] = word
        if not form.chat:
            warn_of_glued(
                [(prompts[i], word) for i, row in enumerate(rows) for word in row.values()]
            )
        _none_empty(what, rows, groups, where)
        kept[what] = tuple(tuple(row.values()) for row in rows)
        ids[what] = tuple(tuple(row) for row in rows)
    _disjoint(prompts, ids, where)
    return {
        "answers": kept["answers"],
        "wrong_answers": kept["wrong_answers"],
        "answer_ids": ids["answers"],
        "wrong_answer_ids": ids["wrong_answers"],
        "dropped": tuple(Drop(word, why, n) for (word, why), n in drops.items()),
    }


def _none_empty(what: str, rows: Sequence[Mapping[int, str]], groups: Groups, where: Where) -> None:
    for i, row in enumerate(rows):
        if not row:
            raise TaskError(
                f"{where(what, i)}: none of the words {list(groups[i])} is a single token there. "
                "Use other words, or sequences=True."
            )


def _disjoint(prompts: Sequence[str], ids: Mapping[str, IdGroups], where: Where) -> None:
    sides = zip(prompts, ids["answers"], ids["wrong_answers"], strict=False)
    for i, (prompt, one, other) in enumerate(sides):
        if set(one) & set(other):
            raise TaskError(
                f"{where('answers', i)}: the prompt {prompt!r} has the same token among its answers"
                " and its wrong answers; they must differ."
            )


def sequences_of(
    prompts: Sequence[str],
    words: Mapping[str, Groups],
    form: Form,
    unusable: Unusable,
    where: Where,
) -> dict[str, Any]:
    """The answers as sequences of any length."""
    if words["wrong_answers"]:
        raise TaskError(
            "A task with sequences=True has no wrong answers: the answer stands in the prompt, and "
            "a wrong one would need a run of its own. Make a second task of them."
        )
    for i, group in enumerate(words["answers"]):
        if len(group) > 1:
            raise TaskError(f"{where('answers', i)}: {list(group)} is a group, not one sequence.")
    if not words["answers"]:
        raise TaskError("sequences=True needs answers: one text for each prompt.")
    texts = [group[0] for group in words["answers"]]
    added = continuations(form.tokenizer, prompts, texts, verbatim=form.chat)
    for i, (text, found) in enumerate(zip(texts, added, strict=True)):
        flaw = answer_flaw(form.tokenizer, text, found, many=True)
        if flaw:
            raise TaskError(f"{where('answers', i)}: the answer {text!r} {flaw}.")
    return {
        "answers": words["answers"],
        "wrong_answers": (),
        "answer_ids": (),
        "wrong_answer_ids": (),
        "sequence_ids": tuple(map(tuple, added)),
    }


def appended(
    tokens: Mapping[str, Tokens], answers: IdGroups, tokenizer: Any
) -> tuple[dict[str, Tokens], IdGroups]:
    """The prompts with all of the answer but its last token, and where the answer is predicted."""
    longer: dict[str, Tokens] = {}
    for side, batch in tokens.items():
        rows = [[*row, *answer[:-1]] for row, answer in zip(batch.rows, answers, strict=True)]
        longer[side] = Tokens.from_rows(rows, token_strings(tokenizer, rows), pad_id(tokenizer))
    lengths = [len(row) for row in tokens["clean"].strings]
    return longer, tuple(
        tuple(range(length - 1, length - 1 + len(answer)))
        for length, answer in zip(lengths, answers, strict=True)
    )
