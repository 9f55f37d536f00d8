"""What an ablation puts in the place of an activation: chosen and checked before it runs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nnattr.errors import TaskError
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, texts_and_tokens
from nnattr.tasks import Task
from nnattr.tokens import Tokens

Replacement: TypeAlias = Literal["zero", "mean", "mean_positional", "resample"]


@dataclass(frozen=True)
class Fill:
    """The kind of an ablation and the prompts that it needs.

    Attributes:
        kind: see `nnattr.engine.replacements`.
        dataset: the prompts that a mean is taken over.
        source: for each example of the task the prompt that it is resampled from, or itself.
        arguments: what results record.
    """

    kind: Replacement
    dataset: Tokens
    source: Tokens
    arguments: dict[str, Any]

    def payload(self, model: Model, task: Task) -> dict[str, Any]:
        """What travels: the kind, and the dataset where a mean is taken over it."""
        means = self.kind in ("mean", "mean_positional")
        given = model.batch(self.dataset, self.arguments["dataset"] or task) if means else {}
        return {"replacement": self.kind, "dataset": given}


def chosen(model: Model, task: Task, kind: Replacement, dataset: Prompts | None, seed: int) -> Fill:
    """The fill of this kind, from the dataset or, without one, from the task's own clean prompts.

    Raises:
        TaskError: prompts that do not fit the model, positions that do not line up
            (``mean_positional`` needs one length, ``resample`` another prompt of each length).
    """
    own, other = task.clean_tokens, task.clean_tokens
    if dataset is not None:
        other = texts_and_tokens(model, dataset, what="dataset")[1]
    lengths = {len(row) for tokens in (own, other) for row in tokens.strings}
    if kind == "mean_positional" and len(lengths) > 1:
        raise TaskError(
            f"'mean_positional' takes means position by position, and the prompts have "
            f"{min(lengths)} to {max(lengths)} tokens. Use prompts of one length, or 'mean'."
        )
    arguments = {"replacement": kind, "dataset": dataset, "seed": seed}
    if kind == "resample":
        return Fill("resample", other, _resampled(own, other, seed), arguments)
    return Fill(kind, other, own, arguments)


def _resampled(own: Tokens, other: Tokens, seed: int) -> Tokens:
    """For each prompt another one of the same length from ``other``, drawn by ``seed``."""
    draw = random.Random(seed)
    picked = []
    for row, strings in zip(own.rows, own.strings, strict=True):
        fitting = [mate for mate in other.rows if len(mate) == len(row) and mate != row]
        if not fitting:
            raise TaskError(
                f"There is no other prompt of {len(row)} tokens to resample {''.join(strings)!r} "
                "from. Give a dataset= with some, or use replacement='mean'."
            )
        picked.append(draw.choice(fitting))
    return Tokens.from_rows(picked, own.strings, int(own.ids[0, 0]))
