"""What the tests of tasks share: tokenizers, a model that answers as told, and small tasks."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

import nnattr
from nnattr import Model, Task
from nnattr.teaching import folder
from tests.support.paths import GPT2, needs_gpt2

TEACHING = ("teaching-gpt2", "teaching-llama")
ALL = (
    *TEACHING,
    pytest.param("gpt2", marks=needs_gpt2),
)

PROMPTS = (
    "When John and Mary went to the shops, John gave the bag to",
    "Then, Tom and James went to the park. James gave a ball to",
)
TWINS = (
    "When John and Mary went to the shops, Mary gave the bag to",
    "Then, Tom and James went to the park. Tom gave a ball to",
)


@cache
def tokenizer_of(name: str) -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(GPT2 if name == "gpt2" else folder(name))
    found.padding_side = "left"
    return found


@cache
def model(name: str, backend: str = "local") -> Model:
    return nnattr.load(name, backend=backend)


def pairs(tokenizer: Any, **options: Any) -> Task:
    """Two pairs of different lengths."""
    return Task.from_pairs(
        PROMPTS, TWINS, [" Mary", " Tom"], [" John", " James"], tokenizer=tokenizer, **options
    )


def text_at(task: Task, span: str, example: int = 0) -> str:
    """The text of a span in the clean prompt."""
    return "".join(task.clean_tokens.strings[example][i] for i in task.spans[span][example])
