"""Prompts to token ids, and answers to the single token they begin with.

Batches are padded on the left, so that position -1 is the last token of every prompt. Padding is
masked and positions are counted from each prompt's own first token, so a row of a batch gives what
it gives alone.

BOS policy: the tokenizer's own. A prompt is encoded as ``tokenizer(prompt)`` does it (GPT-2 adds
nothing, Llama adds its BOS), except that a prompt which already begins with the BOS text, as one
made by a chat template does, does not get a second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnattr.axes import Ids, Mask
from nnattr.errors import TaskError


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

    @property
    def padding(self) -> list[int]:
        """How many padding tokens stand before each prompt."""
        return [self.ids.shape[1] - len(row) for row in self.strings]

    def __len__(self) -> int:
        return len(self.strings)


def encode(tokenizer: Any, prompts: Sequence[str]) -> Tokens:
    """Encode ``prompts`` as one left-padded batch.

    Raises:
        TaskError: no prompts, one that gives no tokens, one longer than the tokenizer's limit, or
            one with a word that the tokenizer does not know (the word is named).
    """
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    if not rows:
        raise TaskError("No prompts were given; a task needs at least one.")
    for prompt, row in zip(prompts, rows, strict=True):
        _check_row(tokenizer, prompt, row)
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    strings = tuple(tuple(tokenizer.decode([i]) for i in row) for row in rows)
    return Tokens(ids, mask, strings)


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The ids of one prompt, by the BOS policy above."""
    bos = tokenizer.bos_token
    doubled = bool(bos) and prompt.startswith(bos)
    return tokenizer(prompt, add_special_tokens=not doubled)["input_ids"]


def continuation_id(tokenizer: Any, prompt: str, answer: str) -> int:
    """The one token that ``answer`` adds after ``prompt``.

    It is read off the encoding of the whole text, since a tokenizer may write a word differently
    after a space, at the start of a text, or after another word.

    Raises:
        TaskError: the answer is empty, unknown to the tokenizer, or more than one token.
    """
    before = prompt_ids(tokenizer, prompt)
    after = prompt_ids(tokenizer, prompt + answer)
    added = after[len(before) :]
    if after[: len(before)] != before:  # the answer merged with the prompt's last word
        added = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(added) == 1 and added[0] != tokenizer.unk_token_id:
        return added[0]
    if len(added) == 1:
        raise TaskError(f"The answer {answer!r} is not in the tokenizer's vocabulary.")
    pieces = [tokenizer.decode([i]) for i in added]
    hint = f" Did you mean {' ' + answer!r}?" if answer[:1].isalnum() else ""
    raise TaskError(
        f"The answer {answer!r} to {prompt!r} is {len(added)} tokens {pieces}, expected exactly "
        f"one.{hint}"
    )


def _check_row(tokenizer: Any, prompt: str, row: Sequence[int]) -> None:
    if not row:
        raise TaskError(f"The prompt {prompt!r} gives no tokens.")
    limit = tokenizer.model_max_length
    if len(row) > limit:
        raise TaskError(
            f"The prompt {prompt[:60]!r}... is {len(row)} tokens, and the tokenizer's limit is "
            f"{limit}."
        )
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in row and tokenizer.unk_token not in prompt:
        words = [word for word in prompt.split() if _unknown(tokenizer, word)]
        raise TaskError(
            f"The tokenizer does not know {', '.join(map(repr, words)) or 'a piece'} in the prompt "
            f"{prompt!r}. Use other words."
        )


def _unknown(tokenizer: Any, word: str) -> bool:
    """Whether ``word`` is unknown in the middle of a text, where it follows a space."""
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id in ids
