"""What tasks are made of: groups of words, the places of things, the form of prompts.

``where("answers", 3)`` is how a message calls the fourth entry of the answers: ``answers[3]`` in
Python, ``line 5, column 'label'`` in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nnattr.errors import TaskError
from nnattr.tokens import chat_texts

Answers: TypeAlias = Sequence[str | Sequence[str]]
Groups: TypeAlias = tuple[tuple[str, ...], ...]
IdGroups: TypeAlias = tuple[tuple[int, ...], ...]
#: For each example: positions, a text that occurs once in the prompt, or a slice of its characters.
Spans: TypeAlias = Mapping[str, Sequence[str | slice | Sequence[int]]]
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

    def written(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """The prompts as they are encoded."""
        if self.system is not None and not self.chat:
            raise TaskError("system= is a turn of a chat; pass chat=True as well.")
        if self.chat:
            prompts = chat_texts(self.tokenizer, prompts, system=self.system)
        return tuple(prompt + self.answer_prefix for prompt in prompts)
