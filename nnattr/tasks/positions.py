"""Which token positions a method patches.

===============  ==============================================================================
``"all"``        every position at once
``"each"``       one score per position
``"last"``       the last token
``5``, ``-2``    that token, from the prompt's own first token or from its end
``[3, 5]``       these tokens at once
``"subject"``    the task's span of that name, all its tokens at once
===============  ==============================================================================

Where the answers are sequences, which stand after the prompt, positions count in the prompt:
``"last"`` is its last token. ``"all"`` and ``"each"`` take in the answer's tokens as well, so that
patching everything is still the other run; the span ``"answer"`` is where the answer is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from nnattr.errors import TaskError
from nnattr.tasks.task import Task

Positions: TypeAlias = str | int | Sequence[int]


def spots(task: Task, positions: Positions) -> Bool[Tensor, "cell example pos"]:
    """The positions of each cell as a mask over the left-padded batch.

    Raises:
        TaskError: a position that a prompt does not have, or a span that the task does not name.
    """
    mask = task.clean_tokens.mask
    if isinstance(positions, str) and positions == "each":
        return torch.eye(task.width, dtype=torch.bool)[:, None] & mask
    if isinstance(positions, str) and positions == "all":
        return mask[None]
    columns = [_columns(task, positions, example) for example in range(len(task))]
    chosen = torch.zeros_like(mask)
    for row, picked in zip(chosen, columns, strict=True):
        row[picked] = True
    return chosen[None]


def _columns(task: Task, positions: Positions, example: int) -> list[int]:
    """The columns of the padded batch that ``positions`` names in one example."""
    whole = len(task.clean_tokens.strings[example])
    length = whole - task.appended[example]
    if isinstance(positions, str):
        named = {"last": [(length - 1,)] * len(task), **task.spans}
        if positions not in named:
            known = ", ".join(map(repr, ("all", "each", *named)))
            raise TaskError(f"The task has no positions named {positions!r}; it has {known}.")
        wanted, length = named[positions][example], whole  # spans may lie in the answer
    else:
        wanted = integers(positions)
    if not wanted:
        raise TaskError("No positions were given; name at least one.")
    for position in wanted:
        if not -length <= position < length:
            raise TaskError(
                f"Position {position} is outside the prompt {task.clean[example]!r}, which has "
                f"{length} tokens (0 to {length - 1}, or -1 for the last)."
            )
    return [task.clean_tokens.padding[example] + position % length for position in wanted]


def integers(positions: object) -> list[int]:
    """One position or several, of any integer type (numpy's and torch's as well), no bools."""
    try:
        return [_position(positions)]
    except TypeError:
        pass
    try:
        return [_position(position) for position in positions]  # type: ignore[attr-defined]
    except TypeError as error:
        raise TaskError(
            f"positions is {positions!r}; expected an integer, integers, 'all', 'each', 'last' or "
            "the name of one of the task's spans."
        ) from error


def _position(given: object) -> int:
    """A whole number; a bool, which Python would take for one, is none.

    Raises:
        TypeError: it is not one.
    """
    if isinstance(given, bool) or str(getattr(given, "dtype", "")) in ("bool", "torch.bool"):
        raise TypeError(given)
    return index(given)  # type: ignore[arg-type]
