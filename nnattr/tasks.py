"""Tasks: pairs of prompts that differ in one thing, and the words that show which way a model went.

A `Task` holds clean and corrupted prompts of equal length, already encoded for one tokenizer, the
answers that fit the clean prompt and the wrong ones, and names for interesting positions. It is
frozen: two tasks with equal tokens have the same ``hash``, which results record.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch

from nnattr.errors import TaskError
from nnattr.teaching import words
from nnattr.tokens import Tokens, continuation_id, encode

Answers: TypeAlias = Sequence[str | Sequence[str]]
Groups: TypeAlias = tuple[tuple[str, ...], ...]
IdGroups: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Task:
    """Clean and corrupted prompts with their answers, encoded for one tokenizer.

    Made by `from_pairs` or by a generator such as `ioi`.

    Attributes:
        clean, corrupted: the prompts.
        answers: for each example the words that count as right (for the clean prompt).
        wrong_answers: for each example the words that count as wrong; may be empty.
        clean_tokens, corrupted_tokens: the prompts as the model sees them.
        answer_ids, wrong_answer_ids: the answers as token ids.
        spans: named positions: for each example the positions of its tokens, counted from the
            prompt's first token.
        name: what the task is called in results.
    """

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    answers: Groups
    wrong_answers: Groups
    clean_tokens: Tokens
    corrupted_tokens: Tokens
    answer_ids: IdGroups
    wrong_answer_ids: IdGroups
    spans: Mapping[str, IdGroups] = field(default_factory=dict)
    name: str = "pairs"

    @classmethod
    def from_pairs(
        cls,
        clean: Sequence[str],
        corrupted: Sequence[str],
        answers: Answers,
        wrong_answers: Answers = (),
        *,
        tokenizer: Any,
        spans: Mapping[str, Sequence[Sequence[int]]] | None = None,
        name: str = "pairs",
    ) -> Task:
        """A task from prompts that you have.

        Args:
            clean: prompts on which the model shows the behaviour.
            corrupted: for each its twin, with the same number of tokens, that does not call for it.
            answers: for each pair the word that continues the clean prompt, or a list of such
                words. Each is one token, with its leading space: ``" Mary"``.
            wrong_answers: the same for the words it competes with; may be left out for metrics that
                need none.
            tokenizer: the model's tokenizer (``model.tokenizer``).
            spans: named positions, for each example a list counted from the prompt's first token
                (a BOS counts, if the tokenizer adds one).
            name: what results call the task.

        Raises:
            TaskError: the lists have different lengths or are empty, a pair's prompts have
                different numbers of tokens, a prompt has unknown words, or an answer is not one
                token. The message names the prompt and the offending piece.
        """
        clean, corrupted = _texts("clean", clean), _texts("corrupted", corrupted)
        right, wrong = _groups("answers", answers), _groups("wrong_answers", wrong_answers)
        _same_length(clean=clean, corrupted=corrupted, answers=right)
        if wrong:
            _same_length(clean=clean, wrong_answers=wrong)
        clean_tokens, corrupted_tokens = encode(tokenizer, clean), encode(tokenizer, corrupted)
        _aligned(clean, corrupted, clean_tokens, corrupted_tokens)
        ids = [
            tuple(
                tuple(continuation_id(tokenizer, prompt, word) for word in group)
                for prompt, group in zip(clean, groups, strict=False)
            )
            for groups in (right, wrong)
        ]
        for prompt, one, other in zip(clean, ids[0], ids[1], strict=False):
            if set(one) & set(other):
                raise TaskError(
                    f"The prompt {prompt!r} has the same token among its answers and its wrong "
                    "answers; they must differ."
                )
        named = {
            key: _span(key, value, clean_tokens, clean) for key, value in (spans or {}).items()
        }
        return cls(
            clean=clean,
            corrupted=corrupted,
            answers=right,
            wrong_answers=wrong,
            clean_tokens=clean_tokens,
            corrupted_tokens=corrupted_tokens,
            answer_ids=ids[0],
            wrong_answer_ids=ids[1],
            spans=named,
            name=name,
        )

    @property
    def width(self) -> int:
        """The number of tokens of the longest prompt."""
        return self.clean_tokens.ids.shape[1]

    @property
    def hash(self) -> str:
        """A short digest of everything that a result depends on."""
        content = [
            [t.ids.tolist(), t.mask.tolist()] for t in (self.clean_tokens, self.corrupted_tokens)
        ]
        spans = sorted((key, value) for key, value in self.spans.items())
        text = json.dumps([content, self.answer_ids, self.wrong_answer_ids, spans])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def labels(self) -> tuple[str, ...]:
        """One text per position of the padded batch, for plots.

        A token that all examples share (from the right) stands as it is; one that differs between
        the runs of a single pair as ``clean|corrupted``; elsewhere the name of the span that lies
        there, or an ellipsis.
        """
        return tuple(self._label(column) for column in range(self.width))

    def _label(self, column: int) -> str:
        both = (self.clean_tokens, self.corrupted_tokens)
        seen = [
            {t.strings[i][column - pad] for i, pad in enumerate(t.padding) if column >= pad}
            for t in both
        ]
        if seen[0] == seen[1] and len(seen[0]) == 1:
            return seen[0].pop()
        if len(self) == 1:
            return "|".join(side.pop() for side in seen)
        for key, rows in self.spans.items():
            pads = self.clean_tokens.padding
            if all(column - pad in row for pad, row in zip(pads, rows, strict=True)):
                return f"[{key}]"
        return "…"

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: slice | Sequence[int]) -> Task:
        """The examples at ``index``, as a task of their own."""
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        pick = [int(i) for i in chosen]
        if not pick:
            raise TaskError(f"No examples are left at {index!r} of a task with {len(self)}.")
        rows = {
            key: tuple(getattr(self, key)[i] for i in pick) if getattr(self, key) else ()
            for key in (
                "clean",
                "corrupted",
                "answers",
                "wrong_answers",
                "answer_ids",
                "wrong_answer_ids",
            )
        }
        return replace(
            self,
            **rows,
            clean_tokens=_take(self.clean_tokens, pick),
            corrupted_tokens=_take(self.corrupted_tokens, pick),
            spans={key: tuple(span[i] for i in pick) for key, span in self.spans.items()},
        )

    def __iter__(self) -> Iterator[Task]:
        """The examples one by one, each as a task."""
        return (self[[i]] for i in range(len(self)))

    def __repr__(self) -> str:
        spans = f", spans {', '.join(self.spans)}" if self.spans else ""
        return f"Task({self.name}: {len(self)} pairs of up to {self.width} tokens{spans})"


def ioi(
    tokenizer: Any,
    *,
    n: int = 8,
    seed: int = 0,
    order: Literal["both", "ABBA", "BABA"] = "both",
    corruption: Literal["swap", "abc"] = "swap",
) -> Task:
    """Indirect-object identification: who receives what the subject gives (Wang et al. 2022).

    ``When Mary and John went to the store, John gave a drink to`` is continued by `` Mary`` (IO),
    not by `` John`` (S). Spans: ``IO``, ``S1``, ``S2``, ``end``.

    Args:
        tokenizer: names, places and objects are used only if they are single tokens in it.
        n: number of pairs.
        seed: which names, places and templates.
        order: ``"ABBA"`` names IO first, ``"BABA"`` names S first, ``"both"`` alternates.
        corruption: ``"swap"`` puts IO where S stood the second time, so that the wrong answer
            becomes the right one; ``"abc"`` replaces the names by three others, so that neither is.

    Raises:
        TaskError: the tokenizer has too few of the words (they are listed), or ``n`` is below 1.
    """
    if n < 1:
        raise TaskError(f"ioi needs n >= 1, not {n}.")
    names, places, objects, templates = _ioi_words(tokenizer)
    draw = random.Random(seed)
    clean, corrupted, answers, wrong = [], [], [], []
    for i in range(n):
        io, s, *others = draw.sample(names, 5)
        template = draw.choice(templates)
        fill = {"place": draw.choice(places), "object": _with_article(draw.choice(objects))}
        first = order if order != "both" else ("ABBA", "BABA")[i % 2]

        def text(a: str, b: str, c: str, template: str = template, fill: Any = fill) -> str:
            return template.format(a=a, b=b, c=c, **fill)

        pair = (io, s) if first == "ABBA" else (s, io)
        clean.append(text(*pair, s))
        corrupted.append(text(*pair, io) if corruption == "swap" else text(*others))
        answers.append(f" {io}")
        wrong.append(f" {s}")
    name = f"ioi(n={n}, seed={seed}, order={order!r}, corruption={corruption!r})"
    task = Task.from_pairs(clean, corrupted, answers, wrong, tokenizer=tokenizer, name=name)
    rows = [
        _ioi_positions(ids, pad, io, s)
        for ids, pad, (io,), (s,) in zip(
            task.clean_tokens.ids.tolist(),
            task.clean_tokens.padding,
            task.answer_ids,
            task.wrong_answer_ids,
            strict=True,
        )
    ]
    spans = {key: tuple((row[key],) for row in rows) for key in ("IO", "S1", "S2", "end")}
    return replace(task, spans=spans)


IOI_TEMPLATES = (
    "When {a} and {b} went to the {place}, {c} gave {object} to",
    "After {a} and {b} went to the {place}, {c} gave {object} to",
    "Then, {a} and {b} went to the {place}. {c} gave {object} to",
    "While {a} and {b} were working at the {place}, {c} gave {object} to",
    "When {a} and {b} got {object} at the {place}, {c} decided to give it to",
    "Friends {a} and {b} found {object} at the {place}. {c} gave it to",
)


def _ioi_words(tokenizer: Any) -> tuple[list[str], list[str], list[str], list[str]]:
    """Names, places, objects and templates that this tokenizer writes as wanted."""

    def known(candidates: Sequence[str]) -> list[str]:
        return [word for word in candidates if _is_single(tokenizer, word)]

    found = known(words.NAMES), known(words.PLACES), known(words.OBJECTS)
    for what, kept, needed in zip(("names", "places", "objects"), found, (5, 1, 1), strict=True):
        if len(kept) < needed:
            raise TaskError(
                f"The tokenizer has {len(kept)} of the {what} as single tokens, and ioi needs "
                f"{needed}. Build the task with Task.from_pairs from words that it has."
            )
    filled = {"a": found[0][0], "b": found[0][1], "c": found[0][0]}
    filled |= {"place": found[1][0], "object": _with_article(found[2][0])}
    unknown = tokenizer.unk_token_id
    templates = [
        template
        for template in IOI_TEMPLATES
        if unknown is None
        or unknown
        not in tokenizer(template.format(**filled), add_special_tokens=False)["input_ids"]
    ]
    if not templates:
        raise TaskError(
            "The tokenizer does not know the words of any IOI template. Build the task with "
            "Task.from_pairs."
        )
    return *found, templates


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _is_single(tokenizer: Any, word: str) -> bool:
    """Whether ``word`` is one known token after another word."""
    try:
        before = words.NAMES[0] + " and"
        continuation_id(tokenizer, before, f" {word}")
    except TaskError:
        return False
    return True


def _ioi_positions(ids: Sequence[int], pad: int, io: int, s: int) -> dict[str, int]:
    row = list(ids)[pad:]
    first, second = [i for i, token in enumerate(row) if token == s]
    return {"IO": row.index(io), "S1": first, "S2": second, "end": len(row) - 1}


def _texts(what: str, given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise TaskError(f"{what} is one string, {given[:40]!r}; expected a list of prompts.")
    wrong = [item for item in given if not isinstance(item, str)]
    if wrong:
        raise TaskError(f"{what} holds {wrong[0]!r}; expected prompts as strings.")
    if not given:
        raise TaskError(f"{what} is empty; a task needs at least one pair.")
    return tuple(given)


def _groups(what: str, given: Answers) -> Groups:
    if isinstance(given, str):
        raise TaskError(f"{what} is one string, {given!r}; expected one answer per pair, a list.")
    groups = tuple((item,) if isinstance(item, str) else tuple(item) for item in given)
    for i, group in enumerate(groups):
        if not group or not all(isinstance(word, str) and word for word in group):
            raise TaskError(f"{what}[{i}] is {given[i]!r}; expected a word or a list of words.")
    return groups


def _same_length(**lists: Sequence[Any]) -> None:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise TaskError(f"These need one entry per pair, but their lengths are {lengths}.")


def _aligned(clean: Sequence[str], corrupted: Sequence[str], one: Tokens, other: Tokens) -> None:
    rows = zip(clean, corrupted, one.strings, other.strings, strict=True)
    for i, (left, right, a, b) in enumerate(rows):
        if len(a) != len(b):
            split = next(
                (k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)),
            )
            raise TaskError(
                f"Pair {i} is misaligned: the clean prompt {left!r} has {len(a)} tokens and the "
                f"corrupted prompt {right!r} has {len(b)}. They first differ at position {split}: "
                f"{list(a[split : split + 4])} against {list(b[split : split + 4])}. Use words of "
                "the same number of tokens."
            )


def _span(
    name: str, rows: Sequence[Sequence[int]], tokens: Tokens, prompts: Sequence[str]
) -> IdGroups:
    if len(rows) != len(tokens):
        raise TaskError(f"The span {name!r} has {len(rows)} entries for {len(tokens)} prompts.")
    result = []
    for row, strings, prompt in zip(rows, tokens.strings, prompts, strict=True):
        for position in row:
            if not -len(strings) <= position < len(strings):
                raise TaskError(
                    f"The span {name!r} names position {position} of {prompt!r}, which has "
                    f"{len(strings)} tokens."
                )
        result.append(tuple(sorted({position % len(strings) for position in row})))
    return tuple(result)


def _take(tokens: Tokens, pick: Sequence[int]) -> Tokens:
    """The rows ``pick``, with the padding that they no longer need cut off."""
    strings = tuple(tokens.strings[i] for i in pick)
    width = max(map(len, strings))
    rows = torch.tensor(list(pick))
    return Tokens(tokens.ids[rows, -width:], tokens.mask[rows, -width:], strings)
