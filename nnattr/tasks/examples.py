"""`Examples`: encoded prompts with their answers, as frozen data.

Everything here can be read off the prompts themselves; how tasks are made and chosen from is in
`nnattr.tasks.task`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from nnattr.arguments import checked
from nnattr.errors import TaskError
from nnattr.tasks.form import Drop, Groups, IdGroups
from nnattr.tokens import Tokens, encoded, token_strings, unknown_id

#: The fields that have one entry per example, where they are not empty.
_PER_EXAMPLE = (
    "clean",
    "corrupted",
    "answers",
    "wrong_answers",
    "answer_ids",
    "wrong_answer_ids",
    "sequence_ids",
    "wrong_sequence_ids",
)


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Prompts with their answers, encoded for one tokenizer.

    Attributes:
        clean, corrupted: the prompts as they are encoded; ``corrupted`` is empty where there is
            nothing to patch from.
        answers: for each example the words that count as right (for the clean prompt).
        wrong_answers: for each example the words that count as wrong; may be empty.
        clean_tokens: the clean prompts as the model sees them.
        twin_tokens: the corrupted ones, or None; read them as ``corrupted_tokens``.
        answer_ids, wrong_answer_ids: the answers as token ids.
        spans: named positions: for each example the positions of its tokens, counted from the
            prompt's first token.
        name: what the task is called in results.
        sequence_ids: where the answers are sequences of several tokens, their ids; the prompts'
            tokens then include all but the last of them.
        wrong_sequence_ids: the ids of the wrong answers, where these are sequences.
        chat: whether a chat template wrote the prompts, with their special tokens.
        from_ids: whether prompts were given as token ids.
        bos: the tokenizer's BOS as text, whether or not it stands before the prompts.
        dropped: what was left out on the way, and why.
    """

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    answers: Groups
    wrong_answers: Groups
    clean_tokens: Tokens
    twin_tokens: Tokens | None
    answer_ids: IdGroups
    wrong_answer_ids: IdGroups
    spans: Mapping[str, IdGroups] = field(default_factory=dict)
    name: str = "pairs"
    sequence_ids: IdGroups = ()
    wrong_sequence_ids: IdGroups = ()
    chat: bool = False
    from_ids: bool = False
    bos: str | None = None
    dropped: tuple[Drop, ...] = ()

    @property
    def corrupted_tokens(self) -> Tokens:
        """The corrupted prompts as the model sees them.

        Raises:
            TaskError: the task has none.
        """
        if self.twin_tokens is None:
            raise TaskError(
                f"The task {self.name!r} has no corrupted prompts, so there is nothing to patch "
                "from. Give it some (Task.from_pairs), or use a method that reads one run only, "
                "such as direct_logit_attribution."
            )
        return self.twin_tokens

    @property
    def paired(self) -> bool:
        """Whether there are corrupted prompts."""
        return self.twin_tokens is not None

    @property
    def appended(self) -> tuple[int, ...]:
        """How many tokens of its answer stand after each prompt (0 unless they are sequences)."""
        return tuple(len(row) - 1 for row in self.sequence_ids) or (0,) * len(self)

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """For each example the number of its prompt's tokens, and that with its answer behind."""
        wholes = map(len, self.clean_tokens.strings)
        return tuple(
            (whole - more, whole) for whole, more in zip(wholes, self.appended, strict=True)
        )

    @property
    def width(self) -> int:
        """The number of tokens of the longest prompt."""
        return self.clean_tokens.ids.shape[1]

    @property
    def hash(self) -> str:
        """A short digest of everything that a result depends on."""
        sides = [side for side in (self.clean_tokens, self.twin_tokens) if side is not None]
        content = [side.rows for side in sides]
        spans = sorted((key, value) for key, value in self.spans.items())
        answers = [self.answer_ids, self.wrong_answer_ids, self.sequence_ids]
        wrong = [self.wrong_sequence_ids] if self.wrong_sequence_ids else []  # hashes stay
        text = json.dumps([content, *answers, spans, *wrong])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encoded_by(self, tokenizer: Any) -> bool:
        """Whether the ids are this tokenizer's: it writes every prompt so.

        Prompts that were given as ids need not be written as their texts would be: of these it is
        the texts of all tokens that must be the same.
        """
        mine = self.clean_tokens
        if not self.from_ids:
            own = [row[: len(row) - n] for row, n in zip(mine.rows, self.appended, strict=True)]
            return own == encoded(tokenizer, self.clean, verbatim=self.chat)
        known = all(unknown_id(tokenizer, row) is None for row in mine.rows)
        return known and token_strings(tokenizer, mine.rows) == list(map(list, mine.strings))

    def __len__(self) -> int:
        return len(self.clean)

    @checked
    def __getitem__(self, index: slice | Sequence[bool] | Sequence[int]) -> Self:
        """The examples at ``index``, as a task of their own.

        Args:
            index: a slice, numbers of examples, or a mask with a bool for each example.
        """
        pick = _picked(index, len(self))
        outside = [i for i in pick if not -len(self) <= i < len(self)]
        if outside:
            raise TaskError(f"There is no example {outside[0]} in a task with {len(self)}.")
        if not pick:
            raise TaskError(f"No examples are left at {index!r} of a task with {len(self)}.")
        rows = {
            key: tuple(getattr(self, key)[i] for i in pick) if getattr(self, key) else ()
            for key in _PER_EXAMPLE
        }
        twins = self.twin_tokens
        return replace(
            self,
            **rows,
            clean_tokens=self.clean_tokens.take(pick),
            twin_tokens=None if twins is None else twins.take(pick),
            spans={key: tuple(span[i] for i in pick) for key, span in self.spans.items()},
        )

    def __iter__(self) -> Iterator[Self]:
        """The examples one by one, each as a task."""
        return (self[[i]] for i in range(len(self)))

    def __repr__(self) -> str:
        spans = f", spans {', '.join(self.spans)}" if self.spans else ""
        what = "pairs" if self.paired else "prompts"
        size = f"{len(self)} {what} of up to {self.width} tokens"
        dropped = f", {len(self.dropped)} dropped" if self.dropped else ""
        return f"{type(self).__name__}({self.name}: {size}{spans}{dropped})"


def _picked(index: slice | Sequence[bool] | Sequence[int], n: int) -> list[int]:
    """The numbers of the examples that a slice, a mask or numbers stand for."""
    if isinstance(index, slice):
        return list(range(n)[index])
    if not index or not isinstance(index[0], bool):
        return list(index)
    if len(index) != n:
        raise TaskError(f"The mask has {len(index)} bools; a task with {n} examples needs {n}.")
    return [i for i, one in enumerate(index) if one]
