"""A training text in three parts, so that training knows which tokens carry the lesson."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """One text: `prompt + answer + tail`. `answer` is what a model should learn to say.

    `wrong` is the answer that a model must not prefer, where the task has exactly one.
    """

    prompt: str
    answer: str
    tail: str = ""
    wrong: str = ""

    @property
    def text(self) -> str:
        """The whole text, as a model sees it in training."""
        return self.prompt + self.answer + self.tail


def pick_heldout(items: Sequence[T], share: float) -> frozenset[T]:
    """A fixed share of `items` that training must never use; the same set in every run."""
    return frozenset(random.Random(0).sample(list(items), round(share * len(items))))
