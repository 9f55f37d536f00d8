"""Prompts as a model reads them, and the arguments of a forward pass.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from nnattr.runs.marks import Marks, Reads, marks_of
from nnattr.runs.places import raw

#: What releases of transformers call keys and values, given or returned, the newest first.
CACHE_NAMES = ("cache", "past_key_values")


class PromptBatch:
    """Prompts side by side, padded on the left.

    Attributes:
        ids: their tokens [example, pos].
        mask: which of these are not padding [example, pos].
        marks: which of them each edit of the model changes; None where that needs no telling.
    """

    def __init__(
        self, ids: Tensor, mask: Tensor, marks: Marks | dict[str, Tensor] | None = None
    ) -> None:
        self.ids = ids
        self.mask = mask
        self.marks = marks_of(mask, marks) if isinstance(marks, dict) else marks

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """How many positions they take."""
        return self.ids.shape[1]

    def take(self, example: Any) -> PromptBatch:
        """Those of these examples: a slice, or indices [row]."""
        marks = None if self.marks is None else self.marks.take(example)
        return PromptBatch(self.ids[example], self.mask[example], marks)

    def cut(self, start: int) -> PromptBatch:
        """Their tokens from ``start`` on, as prompts of their own."""
        marks = None if self.marks is None else self.marks.cut(start)
        return PromptBatch(self.ids[:, start:], self.mask[:, start:], marks)

    def alone(self, columns: Tensor) -> PromptBatch:
        """Each example's tokens at its columns [example, column] as prompts of one token."""
        ids = self.ids.gather(1, columns).flatten()[:, None]
        marks = None if self.marks is None else self.marks.alone(columns)
        return PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), marks)

    def changed(self, edit: int) -> Tensor:
        """Which tokens an edit of the model changes, by its number [example, pos]."""
        if self.marks is None:
            return torch.ones_like(self.mask)
        return self.marks.chosen[edit][:, : self.width]

    def reads(self, start: int = 0, stop: int | None = None, size: int = 1) -> dict[str, Reads]:
        """What a model under edits is told of a pass over them; nothing where it needs none."""
        stop = self.width if stop is None else stop
        return {} if self.marks is None else {"reads": Reads(self.marks, start, stop, size)}

    def positions(self) -> Tensor:
        """Positions counted from each prompt's own first token [example, pos]."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)


def inputs(
    prompts: PromptBatch,
    options: dict[str, Any] | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    cache: Any = None,
    cache_name: str = "",
    keep_cache: bool = False,
    takes_positions: bool = False,
) -> dict[str, Any]:
    """The model's arguments for the tokens from ``start`` to ``stop``.

    A mask only with padding, or beside a cache: nnsight gives a pass without one a mask of the new
    tokens alone, unless it knows the name by which the cache is given.

    Args:
        prompts: what is run.
        options: further arguments of the pass, such as ``{"logits_to_keep": 1}``.
        start: the first position that is run.
        stop: the one behind the last.
        cache: keys and values of the positions before ``start``. The mask covers these as well, and
            positions, which a model would count from the cache, are counted from each prompt's own
            first token.
        cache_name: what the model calls that argument, see `cache_argument`.
        keep_cache: whether the pass returns its keys and values.
        takes_positions: whether the model can be told positions.
    """
    mask = prompts.mask[:, :stop]
    given: dict[str, Any] = {"input_ids": prompts.ids[:, start:stop]}
    if cache is not None or not mask.all():
        given["attention_mask"] = mask.long()
    if cache is not None and takes_positions and not mask.all():
        given["position_ids"] = prompts.positions()[:, start:stop]
    if cache is None:
        given["use_cache"] = keep_cache
    else:
        given[cache_name] = cache
    return given | prompts.reads(start, stop) | (options or {})


def cache_argument(nn: Any) -> str:
    """What the model, as it is where the job runs, calls the keys and values that it is given.

    A module around it, such as an adapter, may hand on whatever it is given: the outermost that
    names the argument is asked.
    """
    for module in raw(nn).modules():
        known = inspect.signature(type(module).forward).parameters
        for name in CACHE_NAMES:
            if name in known:
                return name
    return CACHE_NAMES[-1]


def returned_cache(output: Any) -> Any:
    """The keys and values that a model's output has, by whatever name; None if it has none."""
    found = (getattr(output, name, None) for name in CACHE_NAMES)
    return next((cache for cache in found if cache is not None), None)
