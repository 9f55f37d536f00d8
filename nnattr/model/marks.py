"""Which tokens of a call's prompts each edit of the model changes, and whose values they get.

Said before the job, where names of spans are known and a refusal has the user's words; see
`nnattr.runs.marks` for what becomes of it there.

Positions count from each prompt's own first token, or from its end if they are negative: the end of
the prompt, before an answer that stands behind it and before all that is generated. What follows
the prompt has the positions that go on from there. Values that belong to a position are those of
the prompt's own tokens: answers behind it and new tokens stay as they are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnattr.errors import TaskError
from nnattr.model.edits import Edit
from nnattr.tasks import Task
from nnattr.tasks.positions import integers, own_positions
from nnattr.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts that a job is to run.

    Attributes:
        tokens: as they are encoded.
        task: whose they are, if a task's.
        room: how many tokens may follow.
        readings: how many times the examples are among them, one after the other.
    """

    tokens: Tokens
    task: Task | None
    room: int
    readings: int

    @property
    def lengths(self) -> list[int]:
        """How many tokens each prompt has, without what stands behind it."""
        if self.task is not None:
            return [length for length, _ in self.task.lengths]
        return [len(row) for row in self.tokens.strings]

    def own(self, edit: Edit, row: int) -> list[int]:
        """The positions of one prompt that an edit changes.

        Raises:
            TaskError: one that the prompt does not have, or a span that the task does not name.
        """
        length = self.lengths[row]
        whole = len(self.tokens.strings[row]) + self.room
        if edit.positions is None:
            return list(range(length if edit.by else whole))
        spans = {} if self.task is None else {k: v[row] for k, v in self.task.spans.items()}
        text = "".join(self.tokens.strings[row])
        if self.room and not isinstance(edit.positions, str):
            self._require_to_come(max(integers(edit.positions)), whole, text)
        whole = length if edit.by else whole
        return own_positions(edit.positions, length, whole, spans, text)

    def _require_to_come(self, last: int, whole: int, text: str) -> None:
        if last >= whole:
            raise TaskError(
                f"With up to {self.room} tokens behind it, the prompt {text!r} has positions 0 to "
                f"{whole - 1}, and an edit is at position {last}."
            )


def marked(
    edits: Sequence[Edit], tokens: Tokens, given: Any = None, room: int = 0, readings: int = 1
) -> dict[str, Any]:
    """What travels of prompts: their tokens, and where an edit needs it the marks of each edit.

    Args:
        edits: of the model that is to read them.
        tokens: the prompts.
        given: what they were made of: the spans of a task have names.
        room: how many tokens may follow them.
        readings: how many times the examples are among them (`nnattr.tasks.contrast`).

    Raises:
        TaskError: an edit does not fit these prompts.
    """
    if not any(edit.marked for edit in edits):
        return tokens.tensors
    asked = Asked(tokens, given if isinstance(given, Task) else None, room, readings)
    said = {
        "chosen": torch.stack([_chosen(edit, asked) for edit in edits]),
        "source": torch.tensor([_source(edit, asked) for edit in edits]),
    }
    return {**tokens.tensors, "marks": said}


def _chosen(edit: Edit, asked: Asked) -> Tensor:
    """Which tokens an edit changes [example, pos], those that may follow among them."""
    tokens = asked.tokens
    found = torch.zeros(len(tokens), tokens.ids.shape[1] + asked.room, dtype=torch.bool)
    for row, pad in enumerate(tokens.padding):
        found[row, [pad + position for position in asked.own(edit, row)]] = True
    return found


def _source(edit: Edit, asked: Asked) -> list[int]:
    """Of which prompt of its dataset each example takes values.

    Raises:
        TaskError: there is none that fits.
    """
    n, prompts = len(asked.tokens), edit.prompts
    if not edit.by or prompts is None:
        return [0] * n
    if edit.seed is not None:
        return _drawn(edit, prompts, asked, edit.seed)
    lengths = [len(row) for row in prompts.strings]
    if edit.by == "position":
        _require_lengths(edit, lengths[:1] * n, asked.lengths)
        return [0] * n
    examples = n // asked.readings
    if examples != len(prompts):
        raise TaskError(
            f"With {edit.said}, each example takes values of a prompt of its own: there are "
            f"{len(prompts)} of these, and {examples} examples. Ask about as many, in their order."
        )
    found = list(range(examples)) * asked.readings
    _require_lengths(edit, [lengths[at] for at in found], asked.lengths)
    return found


def _require_lengths(edit: Edit, there: Sequence[int], here: Sequence[int]) -> None:
    """Refuse prompts whose positions do not correspond to those that values are taken from."""
    for row, (one, other) in enumerate(zip(there, here, strict=True)):
        if one != other:
            raise TaskError(
                f"With {edit.said}, values are taken position by position from prompts of {one} "
                f"tokens, and prompt {row} has {other}. Ask about prompts of the same length."
            )


def _drawn(edit: Edit, prompts: Tokens, asked: Asked, seed: int) -> list[int]:
    """For each example another prompt of its length; the same for both runs of a pair."""
    draw, rows = random.Random(seed), prompts.rows
    found = []
    for row, length in enumerate(asked.lengths[: len(asked.tokens) // asked.readings]):
        own = [side[row][:length] for side in _sides(asked)]
        fitting = [i for i, mate in enumerate(rows) if len(mate) == length and mate not in own]
        if not fitting:
            text = "".join(asked.tokens.strings[row])
            raise TaskError(
                f"With {edit.said}, there is no other prompt of {length} tokens to resample "
                f"{text!r} from. Give a dataset= with some, or ablate by 'mean'."
            )
        found.append(draw.choice(fitting))
    return found * asked.readings


def _sides(asked: Asked) -> list[list[list[int]]]:
    """The ids of the prompts; of a task's those of both runs."""
    task = asked.task
    both = [asked.tokens] if task is None else [task.clean_tokens, task.twin_tokens]
    return [one.rows for one in both if one is not None]
