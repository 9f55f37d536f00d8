"""Which tokens of a pass each edit of a model changes, and with whose values.

The client says it of whole prompts (`nnattr.model.marks`), where an edit is not the same
everywhere. Passes run some of these prompts, from one position to another, some of them several
times in a sequence: `Reads` finds the marks of what a module is given.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Marks:
    """What is said of prompts, padded on the left; tokens that are generated follow them.

    Attributes:
        chosen: which tokens an edit changes [edit, example, pos], bool.
        source: of which prompt of the edit's dataset an example takes values [edit, example].
        own: positions, counted from each prompt's own first token [example, pos].
    """

    def __init__(self, chosen: Tensor, source: Tensor, own: Tensor) -> None:
        self.chosen = chosen
        self.source = source
        self.own = own

    def __len__(self) -> int:
        return len(self.own)

    def take(self, example: slice | Tensor) -> Marks:
        """Those of some examples: a slice, or indices [row]."""
        return Marks(self.chosen[:, example], self.source[:, example], self.own[example])

    def cut(self, start: int) -> Marks:
        """Those of the tokens from ``start`` on."""
        return Marks(self.chosen[..., start:], self.source, self.own[:, start:])

    def alone(self, columns: Tensor) -> Marks:
        """Each example's tokens at its columns [example, column] as examples of one token."""
        chosen = self.chosen.gather(-1, columns.expand(len(self.chosen), -1, -1))
        source = self.source[..., None].expand_as(chosen)
        own = self.own.gather(-1, columns)
        return Marks(chosen.flatten(1)[..., None], source.flatten(1), own.flatten()[:, None])


def marks_of(mask: Tensor, said: dict[str, Tensor]) -> Marks:
    """What the client says of prompts with this mask [example, pos]."""
    new = said["chosen"].shape[-1] - mask.shape[1]
    own = torch.nn.functional.pad(mask, (0, new), value=True).long().cumsum(-1) - 1
    return Marks(said["chosen"], said["source"], own.clamp(min=0))


class Reads:
    """What one pass reads.

    Attributes:
        marks: of its sequences, each of one example.
        start, stop: from which position on, and up to which.
        size: how many rows of its example a sequence holds, one behind the other.
        grows: whether this is a generation, of which each step reads up to one token more.
    """

    def __init__(
        self, marks: Marks, start: int, stop: int, size: int = 1, grows: bool = False
    ) -> None:
        self.marks = marks
        self.start = start
        self.stop = stop
        self.size = size
        self.grows = grows

    def columns(self, given: int, step: int) -> Tensor:
        """The positions of the ``given`` tokens of a sequence [token] at a step of a generation."""
        stop = self.stop + step
        if self.grows:
            return torch.arange(stop - given, stop)
        every = torch.arange(self.start, stop)
        own = every if given == self.size * len(every) else every[-1:]  # the last of each row alone
        return own.repeat(self.size)

    def of(
        self, edit: int, shape: tuple[int, ...], folded: bool, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token of an activation whether an edit changes it, and with which value.

        Args:
            edit: its number.
            shape: of the activation, [sequence, token, ...], or where these are ``folded`` into one
                axis [sequence * token, 1, ...]. Sequences are the first of the pass: those that
                have entered it so far.
            folded: see ``shape``.
            step: of a generation.

        Returns:
            ``chosen``, ``source`` and ``own``, as in `Marks`, each [sequence, token], or folded.
        """
        n, given = shape[:2]
        if folded:
            given = n // len(self.marks) if self.grows else self.size * (self.stop - self.start)
            n //= given
        columns, marks = self.columns(given, step), self.marks.take(slice(n))
        found = (
            marks.chosen[edit][:, columns],
            marks.source[edit][:, None].expand(-1, given),
            marks.own[:, columns],
        )
        chosen, source, own = (one.reshape(shape[:2]) for one in found)
        return chosen, source, own


def spread(value: Tensor, source: Tensor, own: Tensor, mask: Any) -> Tensor:
    """The values that tokens [sequence, token] take, as a whole activation [..., width].

    Args:
        value: of each prompt at each position [1 or prompt, pos, replaced entry].
        source: from which prompt.
        own: at which position; behind the last one anything, for nothing is replaced there.
        mask: which entries are replaced [width].
    """
    prompt = source.clamp(max=len(value) - 1).to(value.device)
    found = value[prompt, own.clamp(max=value.shape[1] - 1).to(value.device)]
    whole = found.new_zeros(*found.shape[:-1], len(mask))
    whole[..., mask.to(whole.device)] = found
    return whole
