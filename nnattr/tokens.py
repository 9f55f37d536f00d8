"""Prompts to token ids, and answers to the tokens that they add.

Batches are padded on the left, so that position -1 is the last token of every prompt. Padding is
masked and positions are counted from each prompt's own first token, so a row of a batch gives what
it gives alone.

BOS policy: the tokenizer's own. A prompt is encoded as ``tokenizer(prompt)`` does it (GPT-2 adds
nothing, Llama adds its BOS), except that a prompt which already begins with the BOS text does not
get a second one, and that a prompt written by a chat template is taken *verbatim*: the template
has put every special token where it belongs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch

from nnattr.axes import Ids, Mask
from nnattr.errors import TaskError


@runtime_checkable
class Tokenizer(Protocol):
    """What of a Hugging Face tokenizer tells it from other things.

    Methods alone: from Python 3.12 on a protocol does not see attributes that are made on demand,
    as the special tokens of a tokenizer are.
    """

    decode: Any
    convert_ids_to_tokens: Any


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of prompts as the model sees it.

    Attributes:
        ids: token ids, padded on the left.
        mask: True at real tokens.
        strings: each prompt's tokens as text, without padding.
    """

    ids: Ids
    mask: Mask
    strings: tuple[tuple[str, ...], ...]

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[int]], strings: Sequence[Sequence[str]], pad: int
    ) -> Tokens:
        """Pad the rows on the left with the token ``pad``."""
        width = max(map(len, rows))
        return cls(
            torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows]),
            torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows]),
            tuple(map(tuple, strings)),
        )

    @property
    def padding(self) -> list[int]:
        """How many padding tokens stand before each prompt."""
        return [self.ids.shape[1] - len(row) for row in self.strings]

    @property
    def rows(self) -> list[list[int]]:
        """Each prompt's ids, without padding."""
        return [row[pad:] for row, pad in zip(self.ids.tolist(), self.padding, strict=True)]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What of them travels to a job: ``ids`` and ``mask``."""
        return {"ids": self.ids, "mask": self.mask}

    def take(self, pick: Sequence[int]) -> Tokens:
        """The rows ``pick``, with the padding that they no longer need cut off."""
        strings = tuple(self.strings[i] for i in pick)
        width = max(map(len, strings))
        rows = torch.tensor(list(pick))
        return Tokens(self.ids[rows, -width:], self.mask[rows, -width:], strings)

    def __len__(self) -> int:
        return len(self.strings)


def encode(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    verbatim: bool = False,
    place: Callable[[int], str] = "prompts[{}]".format,
) -> Tokens:
    """Encode ``prompts`` as one left-padded batch.

    Args:
        tokenizer: the model's.
        prompts: the texts.
        verbatim: add no special tokens; the prompts hold theirs.
        place: how messages call the prompt with a given index.

    Raises:
        TaskError: no prompts, one that gives no tokens, one longer than the tokenizer's limit, or
            one with a word that the tokenizer does not know (the word is named).
    """
    rows = encoded(tokenizer, prompts, verbatim=verbatim)
    if not rows:
        raise TaskError("No prompts were given; a task needs at least one.")
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        problem = _problem(tokenizer, prompt, row)
        if problem:
            raise TaskError(f"{place(i)}: {problem}")
    return Tokens.from_rows(rows, token_strings(tokenizer, rows), pad_id(tokenizer))


def encoded(tokenizer: Any, prompts: Sequence[str], *, verbatim: bool = False) -> list[list[int]]:
    """The ids of each prompt, by the BOS policy above."""
    if not prompts:
        return []
    bos = tokenizer.bos_token
    rows = list(tokenizer(list(prompts), add_special_tokens=not verbatim)["input_ids"])
    doubled = [i for i, prompt in enumerate(prompts) if bos and prompt.startswith(bos)]
    for i in [] if verbatim else doubled:
        rows[i] = tokenizer(prompts[i], add_special_tokens=False)["input_ids"]
    return rows


def prompt_ids(tokenizer: Any, prompt: str, *, verbatim: bool = False) -> list[int]:
    """The ids of one prompt, by the BOS policy above."""
    return encoded(tokenizer, [prompt], verbatim=verbatim)[0]


def token_strings(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[list[str]]:
    """Each token of each row as text."""

    @cache
    def text(token: int) -> str:
        return tokenizer.decode([token])

    return [[text(token) for token in row] for row in rows]


def pad_id(tokenizer: Any) -> int:
    """The token that fills up short prompts; it is masked, so any will do."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def continuations(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, verbatim: bool = False
) -> list[list[int]]:
    """The tokens that each answer adds after its prompt.

    They are read off the encoding of the whole text, since a tokenizer may write a word differently
    after a space, at the start of a text, or after another word. An answer that merges with the
    prompt's last word counts with the tokens it has alone.
    """
    whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    distinct = list(dict.fromkeys([*prompts, *whole]))
    ids = dict(zip(distinct, encoded(tokenizer, distinct, verbatim=verbatim), strict=True))
    added = []
    for prompt, answer, text in zip(prompts, answers, whole, strict=True):
        before, after = ids[prompt], ids[text]
        if after[: len(before)] == before:
            added.append(after[len(before) :])
        else:
            added.append(tokenizer(answer, add_special_tokens=False)["input_ids"])
    return added


def continuation_id(tokenizer: Any, prompt: str, answer: str) -> int:
    """The one token that ``answer`` adds after ``prompt``.

    Raises:
        TaskError: the answer is empty, unknown to the tokenizer, or more than one token.
    """
    (added,) = continuations(tokenizer, [prompt], [answer])
    flaw = answer_flaw(tokenizer, answer, added)
    if flaw:
        raise TaskError(f"The answer {answer!r} to {prompt!r} {flaw}.")
    warn_of_glued([(prompt, answer)])
    return added[0]


def warn_of_glued(pairs: Sequence[tuple[str, str]]) -> None:
    """Warn of answers that continue the prompt's last word, as ``"to"`` and ``"Mary"`` do.

    They may be meant so (the second half of a word), but mostly a leading space was forgotten, and
    then every number is about a token that no one would say.
    """
    glued = [(p, a) for p, a in pairs if p[-1:].isalpha() and a[:1].isalpha()]
    if glued:
        prompt, answer = glued[0]
        word = prompt.split()[-1]
        warnings.warn(
            f"The answer {answer!r} has no leading space, so it continues the prompt's last word: "
            f"{word + answer!r} ({len(glued)} of {len(pairs)} answers do). "
            f"Did you mean {' ' + answer!r}?",
            stacklevel=_depth(),
        )


def _depth() -> int:
    """How far up the stack the caller of nnattr is, so that a warning shows the user's line."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("nnattr."):
        frame, depth = frame.f_back, depth + 1
    return depth


def answer_flaw(
    tokenizer: Any, answer: str, added: Sequence[int], *, many: bool = False
) -> str | None:
    """Why the tokens ``added`` by an answer cannot be used, or None; ``many`` may be several."""
    if tokenizer.unk_token_id in added and tokenizer.unk_token not in answer:
        return "is not in the tokenizer's vocabulary"
    if len(added) == 1 or (many and added):
        return None
    pieces = [tokenizer.decode([token]) for token in added]
    hint = f". Did you mean {' ' + answer!r}?" if answer[:1].isalnum() else ""
    return f"is {len(added)} tokens {pieces}, expected exactly one{hint}"


def chat_texts(
    tokenizer: Any, prompts: Sequence[str], *, system: str | None = None
) -> tuple[str, ...]:
    """Each prompt as a user's turn, up to where the assistant begins to speak.

    Raises:
        TaskError: the tokenizer has no chat template, or the template refuses (some know no system
            prompt).
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            f"The tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat template. Use "
            "chat=False, or the tokenizer of a chat model."
        )
    opening = [] if system is None else [{"role": "system", "content": system}]
    talks = [[*opening, {"role": "user", "content": prompt}] for prompt in prompts]
    try:
        return tuple(
            tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            for talk in talks
        )
    except Exception as error:  # templates are programs: they raise what they like
        hint = " Try without system=." if system is not None else ""
        raise TaskError(f"The chat template refuses the prompts: {error}.{hint}") from error


def characters(
    tokenizer: Any, prompts: Sequence[str], *, verbatim: bool = False
) -> list[list[tuple[int, int]]]:
    """The characters ``(start, stop)`` that each token of each prompt stands for.

    Raises:
        TaskError: the tokenizer cannot tell.
    """
    bos = tokenizer.bos_token
    found = []
    for prompt in prompts:
        bare = verbatim or bool(bos and prompt.startswith(bos))
        try:
            taken = tokenizer(prompt, add_special_tokens=not bare, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise TaskError(
                "This tokenizer does not tell which characters its tokens stand for; give spans as "
                "lists of positions."
            ) from error
        found.append(taken["offset_mapping"])
    return found


def _problem(tokenizer: Any, prompt: str, row: Sequence[int]) -> str | None:
    """Why a prompt cannot be used, or None."""
    if not row:
        return f"the prompt {prompt!r} gives no tokens."
    limit = tokenizer.model_max_length
    if len(row) > limit:
        return (
            f"the prompt {prompt[:60]!r}... is {len(row)} tokens, the tokenizer's limit is {limit}."
        )
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in row or tokenizer.unk_token in prompt:
        return None
    plain = prompt
    for special in tokenizer.all_special_tokens:  # a chat template glues them to words
        plain = plain.replace(special, " ")
    words = [word for word in plain.split() if _unknown(tokenizer, word)]
    return (
        f"the tokenizer does not know {', '.join(map(repr, words)) or 'a piece'} in the prompt "
        f"{prompt!r}. Use other words."
    )


def _unknown(tokenizer: Any, word: str) -> bool:
    """Whether ``word`` is unknown in the middle of a text, where it follows a space."""
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id in ids
