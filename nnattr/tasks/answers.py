"""The answers of a task: groups of single tokens, or sequences that stand after the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nnattr.errors import TaskError
from nnattr.tasks.form import Answers, Drop, Form, Groups, IdGroups, Unusable, Where, Words
from nnattr.tokens import (
    Tokens,
    answer_flaw,
    continuations,
    pad_id,
    token_strings,
    token_texts,
    unknown_id,
    warn_of_glued,
)


def as_groups(what: str, given: Answers, where: Where, *, ids: bool = True) -> Words:
    """One group of words for each example; a single word is a group of one.

    Args:
        what: how messages call the list.
        given: texts, or token ids unless ``ids`` is False: a number in a table may be an answer in
            figures.
        where: how messages call an entry.
        ids: whether numbers are token ids.
    """
    if isinstance(given, str):
        raise TaskError(f"{what} is one string, {given!r}; expected one answer per pair, a list.")
    kinds = str | int if ids else str
    groups = []
    for i, item in enumerate(given):
        group = (item,) if isinstance(item, kinds) else item
        if (
            not isinstance(group, list | tuple)
            or not group
            or not all(_is_word(w, kinds) for w in group)
        ):
            number = isinstance(item, int) and not isinstance(item, bool)
            hint = f"; {str(item)!r}, with quotes, is a word" if number else ""
            raise TaskError(
                f"{where(what, i)} is {item!r}; expected a word or a list of words{hint}."
            )
        groups.append(tuple(group))
    return tuple(groups)


def _is_word(word: Any, kinds: Any) -> bool:
    return isinstance(word, kinds) and not isinstance(word, bool) and word != ""


def spaced(groups: Words) -> Words:
    """The words with a space before every text that does not begin with one."""
    return tuple(
        tuple(
            f" {word}" if isinstance(word, str) and not word[0].isspace() else word
            for word in group
        )
        for group in groups
    )


def single_tokens(
    prompts: Sequence[str],
    words: Mapping[str, Words],
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
        read = added_tokens([prompts[i] for i, _ in flat], [word for _, word in flat], form)
        rows: list[dict[int, str]] = [{} for _ in groups]
        written: list[tuple[str, str]] = []
        for (i, given), (word, found, flaw) in zip(flat, read, strict=True):
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
                written += [(prompts[i], word)] if isinstance(given, str) else []
        if not form.chat:
            warn_of_glued(written)
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


def added_tokens(
    prompts: Sequence[str], words: Sequence[str | int], form: Form, *, many: bool = False
) -> list[tuple[str, list[int], str | None]]:
    """Of each word behind its prompt: its text, its tokens, and why these cannot be used, or None.

    Args:
        prompts: as they are encoded.
        words: texts, or token ids.
        form: of the prompts.
        many: whether a word may be several tokens.
    """
    tokenizer = form.tokenizer
    texts = [(at, word) for at, word in enumerate(words) if isinstance(word, str)]
    added = continuations(
        tokenizer, [prompts[at] for at, _ in texts], [word for _, word in texts], verbatim=form.chat
    )
    found = {at: (word, ids) for (at, word), ids in zip(texts, added, strict=True)}
    read = []
    for at, word in enumerate(words):
        if isinstance(word, str):
            _, ids = found[at]
            read.append((word, ids, answer_flaw(tokenizer, word, ids, many=many)))
        elif flaw := unknown_id(tokenizer, [word]):
            read.append((str(word), [word], f"cannot be used: {flaw.rstrip('.')}"))
        else:
            read.append((token_texts(tokenizer, [word])[0], [word], None))
    return read


def _none_empty(what: str, rows: Sequence[Mapping[int, str]], groups: Words, where: Where) -> None:
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
    words: Mapping[str, Words],
    form: Form,
    unusable: Unusable,
    where: Where,
) -> dict[str, Any]:
    """The answers, and the wrong ones if there are any, as sequences of any length."""
    if not words["answers"]:
        raise TaskError("sequences=True needs answers: one text for each prompt.")
    said = {what: _sequences(prompts, what, rows, form, where) for what, rows in words.items()}
    ids = {what: tuple(found for _, found in rows) for what, rows in said.items()}
    for i, (one, other) in enumerate(zip(ids["answers"], ids["wrong_answers"], strict=False)):
        if one == other:
            raise TaskError(f"{where('answers', i)} is also the wrong answer; they must differ.")
    texts = {what: tuple((text,) for text, _ in rows) for what, rows in said.items()}
    return {
        **texts,
        "answer_ids": (),
        "wrong_answer_ids": (),
        "sequence_ids": ids["answers"],
        "wrong_sequence_ids": ids["wrong_answers"],
    }


def _sequences(
    prompts: Sequence[str], what: str, groups: Words, form: Form, where: Where
) -> list[tuple[str, tuple[int, ...]]]:
    """One side's sequences: text and ids of each. A row of ids is one sequence."""
    found = []
    for i, group in enumerate(groups):
        if len(group) > 1 and not all(isinstance(word, int) for word in group):
            raise TaskError(f"{where(what, i)}: {list(group)} is a group, not one sequence.")
        read = added_tokens([prompts[i]] * len(group), group, form, many=True)
        for text, _, flaw in read:
            if flaw:
                raise TaskError(f"{where(what, i)}: the answer {text!r} {flaw}.")
        ids = tuple(token for _, added, _ in read for token in added)
        found.append(("".join(text for text, _, _ in read), ids))
    return found


def appended(
    tokens: Mapping[str, Tokens], answers: IdGroups, tokenizer: Any
) -> tuple[dict[str, Tokens], IdGroups]:
    """The prompts with all of the answer but its last token, and where the answer is predicted."""
    said = [token_strings(tokenizer, [answer])[0] for answer in answers]
    pad = pad_id(tokenizer)
    longer = {side: continued(batch, answers, said, pad) for side, batch in tokens.items()}
    return longer, predicted_at(tokens["clean"], answers)


def continued(
    prompts: Tokens, answers: IdGroups, said: Sequence[Sequence[str]], pad: int
) -> Tokens:
    """The prompts with all of an answer but its last token; ``said`` are the answers' tokens."""
    rows = [[*row, *answer[:-1]] for row, answer in zip(prompts.rows, answers, strict=True)]
    strings = [[*row, *texts[:-1]] for row, texts in zip(prompts.strings, said, strict=True)]
    return Tokens.from_rows(rows, strings, pad)


def predicted_at(prompts: Tokens, answers: IdGroups) -> IdGroups:
    """The positions that predict the answers' tokens, counted in each prompt."""
    lengths = [len(row) for row in prompts.strings]
    return tuple(
        tuple(range(length - 1, length - 1 + len(answer)))
        for length, answer in zip(lengths, answers, strict=True)
    )
