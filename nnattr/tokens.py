"""Prompts to token ids, and answers to the tokens that they add.

Batches are padded on the left, so that position -1 is the last token of every prompt. Padding is
masked and positions are counted from each prompt's own first token, so a row of a batch gives what
it gives alone.

A prompt is what the model is to continue, so it is the text's own tokens behind what the tokenizer
puts *before* a text (GPT-2 nothing, Llama its BOS); what it puts *behind* one, such as an EOS, is
left out: the last token is the prompt's. Nothing is put before a prompt that begins with the
tokenizer's BOS, or as the tokenizer's chat template begins: special tokens are where they belong.

Ids are what counts: they are compared and handed on, and can be given wherever a text can. Texts of
tokens are for people, written so that they tell tokens apart (`token_texts`).
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from nnattr.axes import Ids, Mask
from nnattr.errors import TaskError

#: A prompt: a text, or the ids of its tokens, taken as they are.
Prompt: TypeAlias = str | Sequence[int]
#: What stands in a rendered chat where the user's words do.
WORDS = "words of the user"
#: How tokenizers of bytes call the token of a byte.
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


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
    prompts: Sequence[Prompt],
    *,
    verbatim: bool = False,
    place: Callable[[int], str] = "prompts[{}]".format,
) -> Tokens:
    """Encode ``prompts`` as one left-padded batch.

    Args:
        tokenizer: the model's.
        prompts: the texts, or ids, which are taken as they are.
        verbatim: put nothing before the texts; they hold their special tokens.
        place: how messages call the prompt with a given index.

    Raises:
        TaskError: no prompts, one that gives no tokens, ids that the tokenizer does not have, or
            a word that the tokenizer does not know (the word is named).
    """
    if not len(prompts):
        raise TaskError("No prompts were given; a task needs at least one.")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    told = iter(encoded(tokenizer, texts, verbatim=verbatim))
    rows = [next(told) if isinstance(one, str) else list(map(int, one)) for one in prompts]
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        problem = _problem(tokenizer, prompt, row)
        if problem:
            raise TaskError(f"{place(i)}: {problem}")
    _warn_of_length(tokenizer, max(map(len, rows)))
    return Tokens.from_rows(rows, token_strings(tokenizer, rows), pad_id(tokenizer))


def encoded(tokenizer: Any, prompts: Sequence[str], *, verbatim: bool = False) -> list[list[int]]:
    """The ids of each prompt, see the module; ``verbatim`` puts nothing before it."""
    if not prompts:
        return []
    rows = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    before = [] if verbatim else opening(tokenizer)
    begun = _beginnings(tokenizer, before)
    return [
        list(row) if prompt.startswith(begun) else [*before, *row]
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def prompt_ids(tokenizer: Any, prompt: str, *, verbatim: bool = False) -> list[int]:
    """The ids of one prompt, see the module."""
    return encoded(tokenizer, [prompt], verbatim=verbatim)[0]


def opening(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before a text: its BOS, or none.

    Raises:
        TaskError: the text's own tokens are not to be found in what it makes of the text.
    """
    whole, own = (
        list(tokenizer("a", add_special_tokens=add)["input_ids"]) for add in (True, False)
    )
    if not own:  # a vocabulary of a few words
        return whole[:1] if whole[:1] == [tokenizer.bos_token_id] else []
    for at in range(len(whole) - len(own) + 1):
        if whole[at : at + len(own)] == own:
            return whole[:at]
    raise TaskError(
        f"The tokenizer writes 'a' as {own} without special tokens and as {whole} with them, so "
        "what it puts before a text cannot be told. Give prompts as token ids."
    )


def _beginnings(tokenizer: Any, before: Sequence[int]) -> tuple[str, ...]:
    """How texts begin that hold what would be put ``before`` them, or come from a chat template."""
    if not before:
        return ()
    first = str(tokenizer.convert_ids_to_tokens([before[0]])[0])
    return tuple(text for text in (first, *_chat_beginnings(tokenizer)) if text.strip())


def _chat_beginnings(tokenizer: Any) -> list[str]:
    """What the chat template writes before the first words, of a user or of a system prompt."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    found = []
    for system in (None, WORDS):
        try:
            (chat,) = chat_texts(tokenizer, [WORDS], system=system)
        except TaskError:  # some know no system prompt
            continue
        found.append(chat.partition(WORDS)[0])
    return found


def text_of(tokenizer: Any, prompt: Prompt) -> str:
    """A prompt as a text: what was given, or what its ids say."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.decode(list(prompt), clean_up_tokenization_spaces=False)


def token_strings(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[list[str]]:
    """Each token of each row as text, see `token_texts`."""
    every = list(dict.fromkeys(token for row in rows for token in row))
    texts = dict(zip(every, token_texts(tokenizer, every), strict=True))
    return [[texts[token] for token in row] for row in rows]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tokens as people read them in the midst of a text, so that they can be told apart.

    A token that begins with a space shows it, also where a text's first space is lost in decoding
    (Llama 2); a byte, or a part of a character, is shown as bytes: ``<0xE2><0x80>``.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    return [_token_text(tokenizer, *pair) for pair in zip(ids, pieces, strict=True)]


def _token_text(tokenizer: Any, token: int, piece: str | bytes | None) -> str:
    if isinstance(piece, bytes):  # as some tokenizers of their own code keep them
        piece = piece.decode("utf-8", "backslashreplace")
    if piece is None or BYTE.fullmatch(piece):
        return piece or f"<token {token}>"
    if piece.startswith("▁"):
        return piece.replace("▁", " ")
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return _bytes_text(piece) if "\ufffd" in text else text or piece


def _bytes_text(piece: str) -> str:
    """A token that is no whole character, by its bytes, which GPT-2's tokens write as letters."""
    alphabet = _byte_alphabet()
    if not all(letter in alphabet for letter in piece):
        return piece
    known = [alphabet[letter] for letter in piece]
    return "".join(chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>" for byte in known)


@cache
def _byte_alphabet() -> dict[str, int]:
    """The letter that stands for each byte in the tokens of GPT-2 and its heirs."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [*map(chr, shown), *(chr(256 + i) for i in range(len(hidden)))]
    return dict(zip(letters, shown + hidden, strict=True))


def pad_id(tokenizer: Any) -> int:
    """The token that fills up short prompts; it is masked, so any will do."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def continuations(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, verbatim: bool = False
) -> list[list[int]]:
    """The tokens that each answer adds after its prompt.

    They are read off the encoding of the whole text, since a tokenizer may write a word differently
    after a space, at the start of a text, or after another word. An answer that merges with the
    prompt's last word counts with the tokens it has after a line break, or else alone.
    """
    added: list[list[int] | None] = [None] * len(answers)
    for anchor in (None, "\n", ""):
        left = [i for i, found in enumerate(added) if found is None]
        before = [prompts[i] if anchor is None else anchor for i in left]
        behind = _behind(tokenizer, before, [answers[i] for i in left], verbatim or anchor == "")
        for i, found in zip(left, behind, strict=True):
            added[i] = found
    return [found or [] for found in added]


def _behind(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], verbatim: bool
) -> list[list[int] | None]:
    """The tokens behind each prompt's own in the whole text; None where the prompt's differ."""
    whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    distinct = list(dict.fromkeys([*prompts, *whole]))
    ids = dict(zip(distinct, encoded(tokenizer, distinct, verbatim=verbatim), strict=True))
    pairs = ((ids[prompt], ids[text]) for prompt, text in zip(prompts, whole, strict=True))
    return [
        after[len(before) :] if after[: len(before)] == before else None for before, after in pairs
    ]


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
    pieces = token_texts(tokenizer, added)
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
    try:
        told = tokenizer(list(prompts), add_special_tokens=False, return_offsets_mapping=True)
        own = [[tuple(pair) for pair in row] for row in told["offset_mapping"]]
    except (NotImplementedError, KeyError) as error:  # those that are written in Python
        raise TaskError(
            "This tokenizer does not tell which characters its tokens stand for; give spans as "
            "lists of positions."
        ) from error
    rows = encoded(tokenizer, prompts, verbatim=verbatim)
    before = [len(row) - len(pairs) for row, pairs in zip(rows, own, strict=True)]
    return [[(0, 0)] * n + pairs for n, pairs in zip(before, own, strict=True)]


def _problem(tokenizer: Any, prompt: Prompt, row: Sequence[int]) -> str | None:
    """Why a prompt cannot be used, or None."""
    if not row:
        return f"the prompt {prompt!r} gives no tokens."
    if not isinstance(prompt, str):
        return unknown_id(tokenizer, row)
    eos, unknown = tokenizer.eos_token_id, tokenizer.unk_token_id
    if len(row) > 1 and row[-1] == eos and tokenizer.eos_token not in prompt:
        return (
            f"the tokenizer ends the prompt {_short(prompt)} in {tokenizer.eos_token!r}, also when "
            "it is told to add nothing, and what follows that is not what follows the prompt. "
            "Change the tokenizer's settings (add_eos_token=False), or give token ids."
        )
    told = unknown not in (None, eos, tokenizer.bos_token_id)  # else it has another meaning
    if not told or unknown not in row or tokenizer.unk_token in prompt:
        return None
    plain = prompt
    for special in tokenizer.all_special_tokens:  # a chat template glues them to words
        plain = plain.replace(special, " ")
    words = [word for word in plain.split() if _unknown(tokenizer, word)]
    return (
        f"the tokenizer does not know {', '.join(map(repr, words)) or 'a piece'} in the prompt "
        f"{_short(prompt)}. Use other words."
    )


def _short(prompt: str, longest: int = 200) -> str:
    """A prompt as a message shows it."""
    return repr(prompt) if len(prompt) <= longest else f"{prompt[:longest]!r}..."


def unknown_id(tokenizer: Any, ids: Sequence[int]) -> str | None:
    """Which of these is no token of the tokenizer's, in words, or None."""
    size = len(tokenizer)
    past = [token for token in ids if not 0 <= token < size]
    return f"there is no token {past[0]}: the tokenizer has 0 to {size - 1}." if past else None


def _warn_of_length(tokenizer: Any, longest: int) -> None:
    """Warn of prompts that are longer than the tokenizer was told: the model has the last word."""
    limit = tokenizer.model_max_length
    if longest > limit:
        warnings.warn(
            f"A prompt has {longest} tokens, and the tokenizer says that the model was made for "
            f"{limit} (model_max_length).",
            stacklevel=_depth(),
        )


def _unknown(tokenizer: Any, word: str) -> bool:
    """Whether ``word`` is unknown in the middle of a text, where it follows a space."""
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id in ids
