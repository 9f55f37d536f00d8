"""The words that a model begins its answers with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from nnattr.arguments import checked
from nnattr.results.base import Result


@dataclass(frozen=True)
class Answer:
    """A first token of answers.

    Attributes:
        token: the token as text.
        id: its id.
        count: after how many prompts it is the most probable one.
        prob: its mean probability there.
    """

    token: str
    id: int
    count: int
    prob: float


@dataclass(frozen=True, eq=False, repr=False)
class AnswerTable(Result):
    """Answers, most frequent first; made by `nnattr.most_frequent_answers`, prints as a table.

    ``table[0].token`` is the most frequent one.

    Attributes:
        data: by ``answer``: ``token`` (text), ``id``, ``count`` and ``prob``, as in `Answer`.
        provenance: how this was made.
    """

    VARIABLES: ClassVar = dict.fromkeys(("token", "id", "count", "prob"), ("answer",))

    def __len__(self) -> int:
        return self.data.sizes["answer"]

    @checked
    def __getitem__(self, at: int) -> Answer:
        return list(self)[at]

    def __iter__(self) -> Iterator[Answer]:
        columns = (self.data[name].to_numpy().tolist() for name in self.VARIABLES)
        return iter([Answer(*row) for row in zip(*columns, strict=True)])

    def __str__(self) -> str:
        rows = [
            f"{one.token!r:<16} {one.count:>5} times, mean probability {one.prob:.2f}"
            for one in self
        ]
        return "\n".join(rows)

    def __repr__(self) -> str:
        return f"AnswerTable({self.model})\n{self}"
