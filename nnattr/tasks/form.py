"""What tasks are made of: groups of words, the places of things, the form of prompts.

``where("answers", 3)`` is how a message calls the fourth entry of the answers: ``answers[3]`` in
Python, ``line 5, column 'label'`` in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nnattr.errors import TaskError
from nnattr.tokens import WORDS, Prompt, chat_texts, text_of

#: Words, as texts or as token ids; a row of several is a group of them (or one sequence of ids).
Answers: TypeAlias = Sequence[str | int | Sequence[str | int]]
#: The same, sorted into one group for each example.
Words: TypeAlias = tuple[tuple[str | int, ...], ...]
Groups: TypeAlias = tuple[tuple[str, ...], ...]
IdGroups: TypeAlias = tuple[tuple[int, ...], ...]
#: For each example: a position or several, a text that occurs once in the prompt, or a slice of its
#: characters.
Span: TypeAlias = str | slice | int | Sequence[int]
Spans: TypeAlias = Mapping[str, Sequence[Span]]
Unusable: TypeAlias = Literal["refuse", "drop"]
Where: TypeAlias = Callable[[str, int], str]


@dataclass(frozen=True)
class Drop:
    """Something that was left out of a task.

    Attributes:
        what: a prompt or a word.
        why: the reason.
        count: how many times.
    """

    what: str
    why: str
    count: int = 1


@dataclass(frozen=True)
class Form:
    """How prompts become what the model sees.

    Attributes:
        tokenizer: the model's.
        chat: whether prompts are a user's turn in the tokenizer's chat template.
        system: the system prompt of the chat.
        answer_prefix: text after the prompt, where the answer is awaited.
    """

    tokenizer: Any
    chat: bool = False
    system: str | None = None
    answer_prefix: str = ""

    def written(self, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        """The prompts as they are encoded; those that were given as ids, as texts."""
        if self.system is not None and not self.chat:
            raise TaskError("system= is a turn of a chat; pass chat=True as well.")
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) < len(prompts):
            if self.chat or self.answer_prefix:
                raise TaskError("Prompts given as token ids are complete: no chat, no prefix.")
            return tuple(text_of(self.tokenizer, prompt) for prompt in prompts)
        whole = chat_texts(self.tokenizer, texts, system=self.system) if self.chat else texts
        return tuple(text + self.answer_prefix for text in whole)

    def shift(self, given: str, written: str) -> int | None:
        """By how many characters a prompt stands further back in what was made of it.

        None where it does not stand there as it was given; a template may leave out spaces around
        it, and no more.
        """
        if not self.chat:
            return 0
        (form,) = chat_texts(self.tokenizer, [WORDS], system=self.system)
        start = form.find(WORDS)
        kept = [given, given.strip(), given.rstrip(), given.lstrip()]
        tail = form[start + len(WORDS) :] + self.answer_prefix
        for text in kept if start >= 0 and form.count(WORDS) == 1 else []:
            if written == form[:start] + text + tail:
                return start - given.index(text)
        return None


def encodable(given: Sequence[Prompt], written: Sequence[str]) -> list[Prompt]:
    """What of prompts is encoded: their texts as they are written, or the ids that were given."""
    pairs = zip(given, written, strict=True)
    return [text if isinstance(prompt, str) else prompt for prompt, text in pairs]
