"""Which token positions a method patches.

===============  ==============================================================================
``"all"``        every position at once
``"each"``       one score per position
``"last"``       the last token
``5``, ``-2``    that token, from the prompt's own first token or from its end
``[3, 5]``       these tokens at once
``"subject"``    the task's span of that name, all its tokens at once
===============  ==============================================================================

A position has one meaning, in arguments, labels, files and figures: it counts from the prompt's own
first token, and a negative one from the prompt's end; padding never counts. So the label of a cell,
given back as ``positions=[label]``, is that cell (`labels`).

Where the answers are sequences, which stand after the prompt, they go on counting from its first
token, and negative ones still count from the end of the prompt: ``"last"`` is its last token.
``"all"`` and ``"each"`` take in the answer's tokens as well, so that patching everything is still
the other run; the span ``"answer"`` is where the answer is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from nnattr.errors import TaskError
from nnattr.tasks.examples import Examples

Positions: TypeAlias = str | int | Sequence[int]


def spots(task: Examples, positions: Positions) -> Bool[Tensor, "cell example pos"]:
    """The positions of each cell as a mask over the left-padded batch.

    Raises:
        TaskError: a position that a prompt does not have, a span that the task does not name, or
            ``"each"`` where positions have no common label (see `labels`).
    """
    mask = task.clean_tokens.mask
    if isinstance(positions, str) and positions == "each":
        return _every(task)
    if isinstance(positions, str) and positions == "all":
        return mask[None]
    chosen = torch.zeros_like(mask)
    for i, (row, pad) in enumerate(zip(chosen, task.clean_tokens.padding, strict=True)):
        spans = {name: rows[i] for name, rows in task.spans.items()}
        own = own_positions(positions, *task.lengths[i], spans, task.clean[i])
        row[[pad + position for position in own]] = True
    return chosen[None]


def labels(task: Examples) -> tuple[int, ...]:
    """What the cells of ``"each"`` are called: positions that mean the same token of every prompt.

    Prompts of one length have the same positions from their first token on. Prompts of different
    lengths are lined up at their ends, and their labels are negative.

    Raises:
        TaskError: neither will do: prompts of different lengths with answers behind them.
    """
    prompts, wholes = zip(*task.lengths, strict=True)
    if min(prompts) == max(prompts):
        return tuple(range(max(wholes)))
    if wholes != prompts:
        raise TaskError(
            f"positions='each' has no label that fits these prompts of {min(prompts)} to "
            f"{max(prompts)} tokens with answers behind them: a token of an answer counts from the "
            "first token, and prompts of different lengths from their ends. Take the prompts of "
            "one length, task[[0, 2, ...]], or name a position or a span."
        )
    return tuple(range(-max(prompts), 0))


def _every(task: Examples) -> Bool[Tensor, "cell example pos"]:
    """A cell for each of `labels`; nothing where a prompt is too short for it."""
    tokens, names = task.clean_tokens, torch.tensor(labels(task))
    padding, lengths = torch.tensor(tokens.padding), torch.tensor(task.lengths)[:, 0]
    starts = padding if names[0] >= 0 else padding + lengths
    counted = torch.arange(task.width) - starts[:, None]
    return (counted == names[:, None, None]) & tokens.mask


def own_positions(
    positions: Positions,
    length: int,
    whole: int,
    spans: Mapping[str, Sequence[int]],
    prompt: str,
) -> list[int]:
    """The positions that are named in one prompt, from its first token and in the order given.

    Args:
        positions: see the module; neither ``"each"``, which is many cells, nor ``"all"``.
        length: the number of the prompt's tokens.
        whole: the same with the answer that stands behind it.
        spans: the names of its positions.
        prompt: its text, for messages.

    Raises:
        TaskError: a position that the prompt does not have, or a name that nothing has.
    """
    if isinstance(positions, str):
        named = {"last": (length - 1,), **spans}
        if positions not in named:
            known = ", ".join(map(repr, ("each", *named)))
            raise TaskError(
                f"There are no positions named {positions!r}; there are {known}, and 'all' where "
                "something is patched."
            )
        return list(named[positions])
    wanted = integers(positions)
    if not wanted:
        raise TaskError("No positions were given; name at least one.")
    for position in wanted:
        if not -length <= position < whole:
            behind = f", and {whole - length} of its answer behind them" if whole > length else ""
            raise TaskError(
                f"Position {position} is outside the prompt {prompt!r}, which has {length} tokens "
                f"(0 to {length - 1}, or -1 for the last){behind}."
            )
    return [position if position >= 0 else length + position for position in wanted]


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
